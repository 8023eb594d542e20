"""Imports go down only, without cycles, and the heavy libraries stay in the rooms built for them."""

from __future__ import annotations

import ast
import graphlib

from tests.architecture.source_tree import Module, modules, top_name

# Highest first. A module may import its own layer and the ones below; ROOMS of one layer do not know each other.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"__main__", "cli"}),
    frozenset(
        {
            "dump",
            "dump_worker",
            "coordination",
            "worker_processes",
            "workers",
            "dump_plan",
            "dump_estimate",
            "cost_model",
            "cost_of_use",
            "replay",
            "teacher_run",
            "block_pipe",
            "distill",
            "teacher_training",
            "report",
            "derive",
            "class_mean",
            "part_blocks",
            "merge",
            "mean_blocks",
            "join",
            "joined_blocks",
            "pull",
            "sharing",
            "stats",
            "pages",
        }
    ),
    frozenset(
        {"datasets", "devices", "models", "teachers", "loader", "training", "metrics", "parallel", "ranks", "runs"}
    ),
    frozenset({"features", "targets", "views", "store"}),
    frozenset(
        {
            "specs",
            "lineage",
            "errors",
            "html",
            "canonical",
            "cache_folder",
            "seeding",
            "progress",
            "version",
            "nearest",
            "user_code",
            "urls",
        }
    ),
)
ROOMS = frozenset({"features", "targets", "views", "store"})

# Library -> where it may be imported (a module or a package of kdcache).
CONFINED = {
    "click": ("kdcache.cli",),
    "zarr": ("kdcache.store",),
    "numcodecs": ("kdcache.store",),
    "obstore": ("kdcache.store.location",),
    "fsspec": (),
    "boto3": (),
    "dask": ("kdcache.parallel.dask_cluster", "kdcache.parallel.store_arrays"),
    "distributed": ("kdcache.parallel.dask_cluster",),
    "timm": ("kdcache.models.timm_adapter",),
    "transformers": ("kdcache.models.hf_adapter",),
    "sklearn": (),
    "matplotlib": (),
    "PIL": ("kdcache.datasets", "kdcache.html", "kdcache.pages"),
}
NO_TORCH = ("kdcache.store", "kdcache.datasets", "kdcache.views.sampling", "kdcache.cli")
TORCH_DATASETS = "kdcache.datasets.torchvision_adapter"

# The one module of each optional extra may import it where it is used, with an error that names the extra.
ADAPTERS = frozenset(
    {
        "kdcache.models.hf_adapter",
        "kdcache.models.timm_adapter",
        "kdcache.store.location",
        "kdcache.parallel.dask_cluster",
        "kdcache.parallel.store_arrays",
    }
)


def _inside(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def _layer(name: str) -> int:
    return next(level for level, names in enumerate(LAYERS) if name in names)


def _own_imports(module: Module) -> list[tuple[str, int]]:
    return [(item.name, item.line) for item in module.imports if item.name.split(".")[0] == "kdcache"]


def test_every_module_has_a_layer() -> None:
    known = frozenset().union(*LAYERS)
    homeless = sorted({top_name(module.name) for module in modules()} - known - {""})
    assert not homeless, f"add these to LAYERS in {__file__}, where they belong: {homeless}"


def test_imports_go_down_only() -> None:
    wrong = []
    for module in modules():
        source = top_name(module.name)
        if not source:  # kdcache/__init__.py is the public surface, above everything
            continue
        for name, line in _own_imports(module):
            target = top_name(name)
            upwards = not target or _layer(target) < _layer(source)
            across = {source, target} <= ROOMS and source != target
            if upwards or across:
                wrong.append(f"{module.at(line)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    graph = {
        module.name: {name for name, _ in _own_imports(module) if name not in ("kdcache", module.name)}
        for module in modules()
        if module.name != "kdcache"
    }
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(f"import cycle: {' -> '.join(error.args[1])}") from error


def test_no_import_hides_in_a_function() -> None:
    hidden = [
        f"{module.at(item.line)} imports {item.name}"
        for module in modules()
        if module.name != "kdcache" and not _inside(module.name, ("kdcache.cli",)) and module.name not in ADAPTERS
        for item in module.imports
        if item.in_function
    ]
    assert not hidden, "\n".join(hidden)


def test_libraries_stay_in_their_rooms() -> None:
    wrong = [
        f"{module.at(item.line)} imports {item.name}; allowed in {CONFINED[item.name.split('.')[0]] or 'no module'}"
        for module in modules()
        for item in module.imports
        if item.name.split(".")[0] in CONFINED and not _inside(module.name, CONFINED[item.name.split(".")[0]])
    ]
    assert not wrong, "\n".join(wrong)


def test_store_sampling_datasets_and_cli_do_not_import_torch() -> None:
    wrong = [
        f"{module.at(item.line)} imports {item.name}"
        for module in modules()
        if _inside(module.name, NO_TORCH) and module.name != TORCH_DATASETS
        for item in module.imports
        if item.name.split(".")[0] in ("torch", "torchvision")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_library_does_not_import_pipelines_benchmarks_or_tests() -> None:
    outside = {"pipelines", "benchmarks", "tests"}
    wrong = [
        module.at(item.line) for module in modules() for item in module.imports if item.name.split(".")[0] in outside
    ]
    assert not wrong, "\n".join(wrong)


def test_pipelines_use_public_names_only() -> None:
    wrong = [
        f"{module.at(item.line)} imports {item.name}"
        for module in modules("pipelines")
        for item in module.imports
        if item.name.startswith("kdcache.") and any(part.startswith("_") for part in item.name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_unpickled() -> None:
    banned = {"cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    wrong = [
        f"{module.at(item.line)} imports {item.name}"
        for module in modules()
        for item in module.imports
        if item.name.split(".")[0] in banned
    ]
    # torch.load(weights_only=True) raises pickle's error type. CIFAR's own files are pickles: one reader of them
    # refuses every name but the builders of arrays.
    allowed = {"UnpicklingError": "", "Unpickler": "kdcache.datasets.torchvision_adapter"}
    for module in modules():
        for node in ast.walk(module.tree):
            is_pickle = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
            if is_pickle and allowed.get(node.attr) not in ("", module.name):
                wrong.append(f"{module.at(node.lineno)} uses pickle.{node.attr}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
                if not safe:
                    wrong.append(f"{module.at(node.lineno)} calls torch.load without weights_only=True")
    assert not wrong, "\n".join(wrong)
