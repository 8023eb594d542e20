"""Is a student from the store as good as one from the live teacher? A grid of real runs: bench id `faithfulness`.

Every cell (teacher, store, tuning run, student, gradient) is one small JSON file under the output folder; finished
cells are skipped, so the command can be stopped and given again. Students of one seed are paired: the same initial
weights, the same order of rows and, but for the arms that are about views, the same pixels. `--collect` only gathers
what is there into table and plot (benchmarks/faithfulness_report.py).

    python -m benchmarks.faithfulness [--config FILE.toml] [--out runs/faithfulness] [--collect FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.faithfulness_gradient import student_gradients
from benchmarks.faithfulness_report import collect
from benchmarks.live import LiveTeacher, distill_live, load_teacher
from benchmarks.machine import ROOT, circumstances
from kdcache.canonical import to_json
from kdcache.datasets.cards import open_dataset
from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.models.weights import write_atomically
from kdcache.teacher_training import TeacherConfig, train_teacher
from kdcache.training.processes import Processes
from kdcache.training.setup import evaluation_on
from kdcache.user_code import is_user_factory

Figures = dict[str, Any]


class Study:
    """The grid: cells that know what they need, each computed once.

    Args:
        plan: the TOML file's content.
        out: folder of the cells (cells/*.json), run folders and stores.
    """

    def __init__(self, plan: Mapping[str, Any], out: Path) -> None:
        self.plan = plan
        self.out = out
        self.arms = {arm["name"]: arm for arm in plan["arms"]}
        self._data, self._views = plan["data"], plan["views"]
        self._dataset = absolute(self._data["dataset"])
        self._root = ROOT / self._data["root"] if self._data.get("root") else None

    def run(self) -> None:
        """All cells, the rounds in turn, seed by seed."""
        self.teacher_on_test()
        for number in sorted({arm["round"] for arm in self.arms.values()}):
            for seed in self.plan["grid"]["seeds"]:
                for arm in self.arms.values():
                    if arm["round"] == number:
                        self.student(arm["name"], seed)
            if number == 1:
                self.gradients()
                for arm, more in self.plan["grid"].get("more_seeds", {}).items():
                    for seed in more:
                        self.student(arm, seed)

    def cell(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Figures]) -> Figures:
        """The figures of a cell: from its file, else computed and written.

        Raises:
            SystemExit: the file is of other settings.
        """
        path = self.out / "cells" / f"{name}.json"
        asked = json.loads(json.dumps(to_json(settings)))
        if path.is_file():
            kept = json.loads(path.read_text())
            if kept["settings"] != asked:
                raise SystemExit(f"{path}: made with other settings; choose another --out, or remove that file")
            return dict(kept["figures"])
        started = time.perf_counter()
        figures = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "cell": name,
            "settings": asked,
            "figures": to_json(figures),
            "wall_seconds": round(time.perf_counter() - started, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **circumstances(),
        }
        write_atomically(path, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
        print(f"{document['finished']} {name}: {document['wall_seconds']} s, {headline(figures)}", flush=True)
        return figures

    def teacher(self) -> Path:
        """The teacher's weights; it is trained once, on the training rows and their labels."""
        settings = {**self._data, **self.plan["training"], **self.plan["teacher"], "augment": self._views["policy"]}
        out = self.out / "teacher"

        def train() -> Figures:
            asked = {**self.plan["training"], **self.plan["teacher"]}
            asked["model"] = absolute(asked["model"])
            config = TeacherConfig(
                dataset=self._dataset,
                data_root=self._root,
                split=self._data["train"],
                eval_split=self._data["tune"],
                augment=self._views["policy"],
                eval_every=asked["epochs"],
                out=str(out),
                resume=True,
                device="cpu",
                **asked,
            )
            return dict(train_teacher(config).figures)

        self.cell("teacher", settings, train)
        return out / "last.safetensors"

    def teacher_on_test(self) -> Figures:
        """The teacher on the test rows: how much there is to learn from it."""
        live = self._live()
        config = self._config("live", 0, lr=1.0, epochs=1, split=self._data["test"])

        def evaluate() -> Figures:
            teacher = load_teacher(live, config)
            test = open_dataset(self._dataset, split=self._data["test"], root=self._root)
            processes = Processes(device=torch.device("cpu"))
            found = evaluation_on(test, teacher.preprocessing, processes)(teacher.module)
            return {"accuracy": found.top1, "nll": found.nll, "ece": found.ece}

        return self.cell("teacher-test", {**self._data, **self.plan["teacher"]}, evaluate)

    def store(self, *, plain: bool) -> str:
        """A store of all K classes: of every view, or of the plain images."""
        name = "store-plain" if plain else "store-views"
        policy, count = ("none", 1) if plain else (self._views["policy"], self._views["count"])
        weights = self.teacher()
        model = self.plan["teacher"]["model"]
        settings = {"policy": policy, "count": count, "seed": self._views["seed"], "teacher": model, **self._data}

        def dump() -> Figures:
            config = DumpConfig(
                dataset=self._dataset,
                split=self._data["train"],
                data_root=self._root,
                teacher=absolute(model),
                weights=str(weights),
                topk="all",
                views=count,
                augment=policy,
                view_seed=self._views["seed"],
                out=str(self.out / f"{name}.zarr"),
                device="cpu",
            )
            made = dump_teacher(config)
            size = sum(file.stat().st_size for file in Path(made.store).rglob("*") if file.is_file())
            return {"seconds": made.seconds, "rows": made.rows_written, "bytes": size, **made.quality}

        self.cell(name, settings, dump)
        return str(self.out / f"{name}.zarr")

    def tuned(self, arm: str) -> float:
        """The learning rate of an arm: the best of a short schedule on the held-out training rows."""
        name, tuning = self.arms[arm].get("tuned_as", arm), self.plan["tuning"]
        found = {}
        for rate in tuning["lrs"]:
            config = self._config(name, tuning["seed"], lr=rate, epochs=tuning["epochs"], split=self._data["tune"])
            settings = {**self._settings(name), "lr": rate, "epochs": tuning["epochs"], "seed": tuning["seed"]}
            figures = self.cell(
                f"tune-{name}-{rate:g}",
                settings,
                lambda config=config: self._train(name, config),  # type: ignore[misc]
            )
            found[rate] = (figures["accuracy"], -figures["nll"])
        return max(found, key=lambda rate: found[rate])

    def student(self, arm: str, seed: int) -> Figures:
        """One student of one arm."""
        rate = self.tuned(arm)
        student = self.plan["student"]
        config = self._config(arm, seed, lr=rate, epochs=student["epochs"], split=self._data["test"])
        settings = {**self._settings(arm), "lr": rate, "epochs": student["epochs"], "seed": seed}
        return self.cell(f"{arm}-seed{seed}", settings, lambda: self._train(arm, config))

    def gradients(self) -> Figures:
        """Store against live: the batch gradient of the student's parameters, per k and T, at three students."""
        runs, rate = self.out / "students", self.tuned("store")
        seed = self.plan["grid"]["seeds"][0]
        students = {
            "initial": None,
            "short": runs / f"store-lr{rate:g}-epochs{self.plan['tuning']['epochs']}-seed{self.plan['tuning']['seed']}",
            "final": runs / f"store-lr{rate:g}-epochs{self.plan['student']['epochs']}-seed{seed}",
        }
        config = self._config("store", seed, lr=rate, epochs=self.plan["student"]["epochs"], split=self._data["test"])

        def compare() -> Figures:
            return {
                name: student_gradients(
                    config,
                    load_teacher(self._live(), config),
                    folder / "last.safetensors" if folder else None,
                    split=self._data["train"],
                )
                for name, folder in students.items()
            }

        return self.cell("gradients", {**self._settings("store"), "lr": rate}, compare)

    def _train(self, arm: str, config: DistillConfig) -> Figures:
        if self.arms[arm]["method"] == "live":
            return distill_live(config, self._live())
        return dict(distill(config).figures)

    def _config(self, arm: str, seed: int, *, lr: float, epochs: int, split: str) -> DistillConfig:
        what, student = self.arms[arm], self.plan["student"]
        plain, kd = what.get("plain", False), what["method"] != "ce"
        folder = self.out / "students" / f"{arm}-lr{lr:g}-epochs{epochs}-seed{seed}"
        return DistillConfig(
            store=self.store(plain=plain),
            dataset=self._dataset,
            data_root=self._root,
            eval_split=split,
            student=absolute(student["model"]),
            method=what["method"],
            topk=what.get("topk"),
            temperature=student["temperature"] if kd else None,
            alpha=student["alpha"] if kd else None,
            views=what.get("views"),
            augment=self._views["policy"] if plain else None,
            epochs=epochs,
            eval_every=epochs,
            lr=lr,
            seed=seed,
            out=str(folder),
            resume=True,
            device="cpu",
            **self.plan["training"],
        )

    def _live(self) -> LiveTeacher:
        views = self._views
        return LiveTeacher(
            source=absolute(self.plan["teacher"]["model"]),
            weights=self.teacher(),
            split=self._data["train"],
            policy=views["policy"],
            view_seed=views["seed"],
            views=views["count"],
        )

    def _settings(self, arm: str) -> dict[str, Any]:
        """What decides the runs of an arm, besides learning rate, epochs and seed."""
        plan = self.plan
        return {
            "arm": self.arms[arm],
            "student": plan["student"],
            "teacher": plan["teacher"],
            "training": plan["training"],
            "data": plan["data"],
            "views": plan["views"],
        }


def absolute(name: str) -> str:
    """`file.py:factory` with the file's path from the repository's root; other names as they are."""
    return str(ROOT / name) if is_user_factory(name) else name


def headline(figures: Mapping[str, Any]) -> str:
    """A cell in a few words, for the log."""
    if "accuracy" in figures:
        return f"top-1 {figures['accuracy']:.2%}, NLL {figures['nll']:.3f}"
    return f"top-1 {figures['top1']:.2%} of {figures['rows']:,} rows" if "top1" in figures else "done"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "faithfulness")
    parser.add_argument(
        "--collect", type=Path, metavar="FOLDER", help="write table.md, cells.json, plot.svg; run nothing"
    )
    arguments = parser.parse_args()
    plan = tomllib.loads(arguments.config.read_text())
    if arguments.collect:
        collect(plan, arguments.out / "cells", arguments.collect)
        return
    if not (ROOT / plan["data"].get("root", ".")).is_dir():
        print(f"faithfulness: skipped, there is no {ROOT / plan['data']['root']}", file=sys.stderr)
        return
    torch.set_num_threads(1)
    Study(plan, arguments.out.resolve()).run()


if __name__ == "__main__":
    main()
