"""The table of methods: one row each. Nothing is registered elsewhere; the losses are in the modules named here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType

from kdcache.errors import ConfigError
from kdcache.targets import batchwise, decoupled, response, sampled, transformed
from kdcache.targets.divergence import TAILS
from kdcache.targets.method import Method
from kdcache.targets.mixed import EACH_LABEL, HARD_PART, refused
from kdcache.targets.options import Option, choice, number, numbers

HEAD = ("topk_index", "topk_log_prob", "tail", "label_log_prob")

HARD_SMOOTHING = Option(
    name="hard_smoothing", default=0.0, check=number(0, 1), help="label smoothing of the hard part, 0 to 1"
)
TAIL = Option(
    name="tail",
    default="auto",
    check=choice(*TAILS),
    help="what becomes of the classes that are not named; auto: full when all K are kept, else ghost",
)
TAIL_WITHOUT_PRIOR = dataclasses.replace(TAIL, check=choice(*(name for name in TAILS if name != "prior")))
HEAD_WEIGHT = Option(
    name="head_weight", default=1.0, check=number(0), help="tail=decoupled: weight of the divergence inside the head"
)
SIMILARITY = (
    Option(
        name="similarity",
        default="auto",
        check=choice("auto", "weights", "mean"),
        help="R from the teacher's last layer or from class means; auto: weights where the store keeps them",
    ),
    Option(name="power", default=1.0, check=number(0, open_low=True), help="exponent of the cosine similarities"),
    Option(
        name="beta",
        default=None,
        check=number(0, open_low=True),
        help="temperature of the softmax over similarities; by default solved for `confidence`",
    ),
    Option(
        name="confidence",
        default=None,
        check=number(0, 1, open_low=True, open_high=True),
        help="mean of R[y,y]; by default the teacher's mean p_y at T, at most 0.9",
    ),
)
DKD = (
    Option(name="target_weight", default=1.0, check=number(0), help="dkd: weight of the label's part (its alpha)"),
    Option(
        name="nontarget_weight",
        default=8.0,
        check=number(0),
        help="dkd: weight of the other classes (its beta): 2 for resnet56/110 teachers, 6 for vgg and wrn",
    ),
    Option(name="warmup_epochs", default=20.0, check=number(0), help="dkd: epochs over which the soft part grows"),
)
SOFT_WEIGHT = Option(name="soft_weight", default=1.0, check=number(0), help="w: weight of the soft part")
DECOUPLED = "it sets the label apart from all other classes, and of a mix the partner's class is most of the others"
TANG = "Tang et al. 2020, arXiv:2002.03532"
YUAN = "Yuan et al. 2020, arXiv:1909.11723"
ZHENG = "Zheng and Yang 2024, arXiv:2402.11148"
HINTON = "Hinton et al. 2015, arXiv:1503.02531"


def hard_weight(default: float) -> Option:
    """The weight of the hard part, for methods that add parts instead of mixing them by alpha."""
    return Option(name="hard_weight", default=default, check=number(0), help="weight of cross-entropy with the label")


_TABLE = (
    Method(
        name="ce",
        summary="plain cross-entropy with the label: no teacher",
        equation="-log q_y",
        source="standard",
        status="standard",
        loss=response.ce_loss,
        on_mixed=EACH_LABEL,
    ),
    Method(
        name="ls",
        summary="label smoothing: no teacher",
        equation="H((1-eps) onehot(y) + eps/K, q)",
        source="Szegedy et al. 2016, arXiv:1512.00567",
        status="standard",
        loss=response.ls_loss,
        on_mixed=EACH_LABEL,
        options=(Option(name="smoothing", default=0.1, check=number(0, 1), help="eps: mass spread over all classes"),),
    ),
    Method(
        name="kd",
        summary="distillation from the named classes and a tail of your choice",
        equation="(1-alpha) CE + alpha T^2 KL(p^T || q^T)",
        source=HINTON,
        status="algebra",
        loss=response.kd_loss,
        needs=HEAD,
        options=(TAIL, HEAD_WEIGHT, *SIMILARITY, HARD_SMOOTHING),
        exact_below_full_k=False,
        default_temperature=4.0,
        default_alpha=0.9,
        make_context=response.prepare_prior,
    ),
    Method(
        name="kd-topk",
        summary="the top k of the teacher's softmax at T, the other mass spread evenly",
        equation="target_i = p_i^T in the top k, (1 - sum) / (K-k) elsewhere",
        source=TANG,
        status="recalled",
        loss=response.kd_topk_loss,
        default_topk=10,
        needs=HEAD,
        options=(HARD_SMOOTHING,),
        exact_below_full_k=False,
        default_temperature=4.0,
        default_alpha=0.9,
    ),
    Method(
        name="kd-pt",
        summary="only the teacher's confidence in the label, the other mass spread evenly",
        equation="target_y = p_y^T, (1 - p_y^T) / (K-1) elsewhere",
        source=TANG,
        status="recalled",
        loss=response.kd_pt_loss,
        on_mixed=EACH_LABEL,
        needs=HEAD,
        options=(HARD_SMOOTHING,),
        exact_below_full_k=False,
        default_temperature=4.0,
        default_alpha=0.9,
    ),
    Method(
        name="kd-sim",
        summary="only the similarity of classes: the label's row of R",
        equation="KL(R[y] || q^T), R[y] = softmax(sgn(s) |s|^power / beta)",
        source=TANG,
        status="recalled; similarity=mean is ours",
        loss=response.kd_sim_loss,
        on_mixed=EACH_LABEL,
        options=(*SIMILARITY, HARD_SMOOTHING),
        default_temperature=1.0,
        default_alpha=0.9,
        make_context=response.prepare_similarity,
    ),
    Method(
        name="kd-pt+sim",
        summary="confidence and similarity together",
        equation="mix=linear: (1-mu) T^2 KL(kd-pt) + mu KL(R[y] || q); mix=split: p_y^T on y, the rest along R[y]",
        source=TANG,
        status="recalled; the linear mix's temperatures and mix=split are ours",
        loss=response.kd_pt_sim_loss,
        on_mixed=EACH_LABEL,
        needs=HEAD,
        options=(
            Option(name="mix", default="linear", check=choice("linear", "split"), help="two terms, or one target"),
            Option(name="mu", default=0.5, check=number(0, 1), help="mix=linear: weight of the similarity term"),
            *SIMILARITY,
            HARD_SMOOTHING,
        ),
        exact_below_full_k=False,
        default_temperature=4.0,
        default_alpha=0.9,
        make_context=response.prepare_mixed_similarity,
    ),
    Method(
        name="tfkd-reg",
        summary="a hand-made teacher, sure of the label: no teacher and no store needed",
        equation="(1-alpha) CE + alpha w KL(softmax(d/T) || q), d = correct on y, the rest spread evenly",
        source=YUAN,
        status="code",
        loss=transformed.tfkd_reg_loss,
        on_mixed=EACH_LABEL,
        options=(
            Option(name="correct", default=0.99, check=number(0, 1), help="the virtual teacher's confidence"),
            Option(name="soft_weight", default=1.0, check=number(0), help="w; the paper's multiplier divided by K"),
            HARD_SMOOTHING,
        ),
        default_temperature=20.0,
        default_alpha=0.1,
    ),
    Method(
        name="tfkd-self",
        summary="kd from a store whose teacher is the student's own architecture, trained before",
        equation="(1-alpha) CE + alpha T^2 KL(p^T || q^T)",
        source=YUAN,
        status="code; the public code averages the divergence over classes too",
        loss=response.kd_loss,
        needs=HEAD,
        options=(TAIL, HEAD_WEIGHT, *SIMILARITY, HARD_SMOOTHING),
        exact_below_full_k=False,
        default_temperature=6.0,
        default_alpha=0.95,
        make_context=response.prepare_prior,
    ),
    Method(
        name="dkd",
        summary="the label's confidence and the other classes, weighted apart",
        equation="CE + T^2 (a KL(b^T || b^S) + b KL(phat || qhat)), b = (p_y, 1-p_y), phat over i != y",
        source="Zhao et al. 2022, arXiv:2203.08679",
        status="code",
        loss=decoupled.dkd_loss,
        on_mixed=refused(DECOUPLED),
        needs=HEAD,
        options=(*DKD, hard_weight(1.0), HARD_SMOOTHING),
        exact_below_full_k=False,
        default_temperature=4.0,
    ),
    Method(
        name="nkd",
        summary="normalised distillation: the label without temperature, the others with it",
        equation="CE - p_y log q_y + gamma T^2 H(phat^T, qhat^T) over i != y",
        source="Yang et al. 2023, arXiv:2303.13005",
        status="code",
        loss=decoupled.nkd_loss,
        on_mixed=refused(DECOUPLED),
        needs=HEAD,
        options=(
            Option(name="gamma", default=1.5, check=number(0), help="weight of the other classes"),
            hard_weight(1.0),
            HARD_SMOOTHING,
        ),
        exact_below_full_k=False,
        default_temperature=1.0,
    ),
    Method(
        name="lskd",
        summary="kd or dkd on logits standardised over the classes",
        equation="h CE + w T^2 KL(p', q'), p' = softmax(((z - mean) / std) / T), q' alike",
        source="Sun et al. 2024, arXiv:2403.01427",
        status="code; weights recalled",
        loss=transformed.lskd_loss,
        on_mixed=dataclasses.replace(HARD_PART, refused_options=(("base", "dkd", DECOUPLED),)),
        needs=HEAD,
        options=(
            Option(name="base", default="kd", check=choice("kd", "dkd"), help="the method that is wrapped"),
            Option(name="soft_weight", default=9.0, check=number(0), help="base=kd: weight of the soft part"),
            TAIL_WITHOUT_PRIOR,
            HEAD_WEIGHT,
            *DKD,
            hard_weight(0.1),
            HARD_SMOOTHING,
        ),
        exact_below_full_k=False,
        default_temperature=2.0,
    ),
    Method(
        name="ttm",
        summary="only the teacher is tempered",
        equation="CE + w KL(p^T || q), the student at T=1",
        source=ZHENG,
        status="code; default weight ours",
        loss=transformed.ttm_loss,
        needs=HEAD,
        options=(SOFT_WEIGHT, hard_weight(1.0), HARD_SMOOTHING),
        exact_below_full_k=False,
        default_temperature=4.0,
    ),
    Method(
        name="wttm",
        summary="ttm, rows weighted by how unsure the teacher is",
        equation="CE + w (sum_j p_j^(1/T)) KL(p^T || q), the student at T=1",
        source=ZHENG,
        status="code; default weight ours",
        loss=transformed.wttm_loss,
        needs=HEAD,
        options=(SOFT_WEIGHT, hard_weight(1.0), HARD_SMOOTHING),
        exact_below_full_k=False,
        default_temperature=4.0,
    ),
    Method(
        name="ctkd",
        summary="kd at a learned temperature that makes it harder, more so over the first 10 epochs",
        equation="(1-alpha) CE + alpha T^2 KL(p^T || q^T), T = 1 + 20 sigmoid(theta), theta's gradient reversed",
        source="Li et al. 2022, arXiv:2211.16231",
        status="code",
        loss=transformed.ctkd_loss,
        needs=HEAD,
        options=(TAIL_WITHOUT_PRIOR, HEAD_WEIGHT, HARD_SMOOTHING),
        exact_below_full_k=False,
        default_alpha=0.9,
        make_context=transformed.prepare_ctkd,
    ),
    Method(
        name="dist",
        summary="correlations over the classes of a row and over the rows of a class",
        equation="CE + T^2 (beta (1 - r(rows)) + gamma (1 - r(columns))), r = Pearson of p^T and q^T",
        source="Huang et al. 2022, arXiv:2205.10536",
        status="code",
        loss=batchwise.dist_loss,
        needs=HEAD,
        options=(
            Option(name="beta", default=2.0, check=number(0), help="weight of the rows' term"),
            Option(name="gamma", default=2.0, check=number(0), help="weight of the columns' term"),
            hard_weight(1.0),
            HARD_SMOOTHING,
        ),
        exact_below_full_k=False,
        default_temperature=4.0,
        per_row=False,
    ),
    Method(
        name="mlkd",
        summary="rows, batch and class relations at several temperatures, over one or two views",
        equation="CE + w sum_T (T^2 KL + |p p' - q q'|^2 / B + |p' p - q' q|^2 / K)",
        source="Jin et al. 2023, CVPR, Multi-Level Logit Distillation",
        status="recalled; without the paper's confidence masks",
        loss=batchwise.mlkd_loss,
        needs=(*HEAD, "view 2"),
        options=(
            Option(
                name="temperatures",
                default=(2.0, 3.0, 4.0, 5.0, 6.0),
                check=numbers(0),
                help="the temperatures summed over, separated by commas",
            ),
            Option(name="soft_weight", default=9.0, check=number(0), help="w"),
            hard_weight(1.0),
            HARD_SMOOTHING,
        ),
        exact_below_full_k=False,
        per_row=False,
    ),
    Method(
        name="rskd",
        summary="classes drawn from the teacher instead of its top k; for data that is seen once",
        equation="(1-alpha) CE + alpha H(c / N, q), c = counts of N draws from p",
        source="Anshumann et al. 2025, arXiv:2503.16870",
        status="recalled",
        loss=sampled.rskd_loss,
        needs=("sample_index", "sample_count"),
        options=(HARD_SMOOTHING,),
        default_alpha=0.9,
    ),
)

methods: Mapping[str, Method] = MappingProxyType({method.name: method for method in _TABLE})


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is none; the nearest names are given.
    """
    if name not in methods:
        near = difflib.get_close_matches(name, methods, n=3, cutoff=0.4) or list(methods)
        raise ConfigError(f"unknown method {name!r}; nearest: {', '.join(near)}", hint="kdcache methods lists them all")
    return methods[name]
