"""Who taught whom: the line of teachers behind a store, carried in the weights of every student and from there into the
manifest of the next store. Provenance only: nothing here changes a store key. No bytes, no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdcache.specs import TeacherSpec

# What a generation is known by; digests name exact weights and the exact store it learned from.
_OWN = ("source", "state_digest")
_TRAINING = ("recipe", "method", "store_key", "store_root_digest")


def lineage_of(teacher: TeacherSpec) -> list[dict[str, Any]]:
    """The teacher, its own teacher, and so on, nearest first.

    Returns:
        One entry each: `source` and `state_digest` of the model, and, as far as its weights say how they were trained,
        `recipe` ("train-teacher" or "distill"), `method`, `store_key` and `store_root_digest` of the store it learned
        from.
    """
    own = {name: getattr(teacher, name) for name in _OWN}
    trained = {name: teacher.training[name] for name in _TRAINING if teacher.training.get(name)}
    return [{**own, **trained}, *ancestors_of(teacher.training)]


def ancestors_of(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The teachers before, from the training provenance of a weights file; empty where it names none."""
    kept = training.get("lineage", ())
    if not isinstance(kept, Sequence) or isinstance(kept, str):
        return []  # another program's metadata
    return [dict(entry) for entry in kept if isinstance(entry, Mapping)]


def in_words(teacher: Mapping[str, Any]) -> str:
    """The line behind a manifest's teacher for people, nearest first; "" where its weights say nothing.

    Args:
        teacher: a `TeacherSpec` as plain JSON.
    """
    training = teacher.get("training", {})
    own = {**{name: teacher.get(name, "") for name in _OWN}, **{name: training.get(name, "") for name in _TRAINING}}
    generations = [own, *ancestors_of(training)]
    return " <- ".join(_words(generations)) if len(generations) > 1 or own["recipe"] else ""


def _words(generations: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for entry in generations:
        how = [str(entry[name]) for name in ("recipe", "method") if entry.get(name)]
        if entry.get("recipe") == "distill" and entry.get("store_root_digest"):
            how.append(f"store {str(entry['store_root_digest'])[:8]}")
        yield f"{entry.get('source', '?')} ({' '.join(how) or 'weights ' + str(entry.get('state_digest', ''))[:8]})"
