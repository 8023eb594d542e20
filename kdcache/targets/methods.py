"""The table of methods: one row each. Nothing is registered elsewhere; the losses are in the modules named here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from kdcache.errors import ConfigError
from kdcache.targets import response
from kdcache.targets.divergence import TAILS
from kdcache.targets.method import Method
from kdcache.targets.options import Option, choice, number

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
TANG = "Tang et al. 2020, arXiv:2002.03532"
HINTON = "Hinton et al. 2015, arXiv:1503.02531"

_TABLE = (
    Method(
        name="ce",
        summary="plain cross-entropy with the label: no teacher",
        equation="-log q_y",
        source="standard",
        status="standard",
        loss=response.ce_loss,
    ),
    Method(
        name="ls",
        summary="label smoothing: no teacher",
        equation="H((1-eps) onehot(y) + eps/K, q)",
        source="Szegedy et al. 2016, arXiv:1512.00567",
        status="standard",
        loss=response.ls_loss,
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
