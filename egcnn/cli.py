"""The ``egcnn`` command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import egcnn
from egcnn.errors import InputError

if TYPE_CHECKING:
    from egcnn.checkpoint import Trained
    from egcnn.data.case import Case

app = typer.Typer(
    name="egcnn",
    help="Edge-Gated CNNs for volumetric semantic segmentation of medical images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; bad input is one line on stderr and exit code 1."""
    prepare_cpu()
    try:
        app(args=arguments)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)


def _sentence(error: BaseException | None) -> str | None:
    """What to tell a person about an error; ``None`` where only a traceback helps."""
    link = error
    while link is not None:
        if isinstance(link, InputError):
            return _from_worker(str(link)) or str(link)
        link = link.__cause__ or link.__context__
    if error is None:
        return None
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory is full; a smaller --patch, --batch-size or --filters needs less"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return _from_worker(str(error))


def _from_worker(text: str) -> str | None:
    # A worker process hands over its traceback as text.
    found = re.findall(r"^egcnn\.errors\.InputError: (.*)$", text, re.MULTILINE)
    return found[-1] if found else None


def prepare_cpu() -> None:
    """Set what makes torch fast on a CPU; it reads these when it is imported.

    Large pages make the allocation of feature maps cheaper (torch asks the kernel for them), and
    a thread per core that this process may use avoids oversubscribing a container's share. Threads
    wait briefly at a barrier before they sleep: sleeping at once makes the steps of a small network
    half as long again, and spinning for long slows them several times where something else runs.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def usable_cores() -> int:
    """Physical cores that this process may use, by its affinity and its cgroup's quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is None:
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(_read(siblings) or str(cpu))
    return max(1, min(len(cores), _quota()))


def _quota() -> int:
    """Whole CPUs that the cgroup (version 2, or 1) grants; a large number where it sets none."""
    group = next((g[3:] for g in _read(Path("/proc/self/cgroup")).split() if g[:3] == "0::"), "/")
    granted = [sys.maxsize]
    for folder in (Path("/sys/fs/cgroup" + group), *Path("/sys/fs/cgroup" + group).parents):
        fields = _read(folder / "cpu.max").split()
        if len(fields) == 2 and fields[0] != "max":
            granted.append(int(fields[0]) // int(fields[1]))
    old = Path("/sys/fs/cgroup/cpu")
    quota, period = _read(old / "cpu.cfs_quota_us"), _read(old / "cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        granted.append(int(quota) // int(period))
    return min(granted)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _show_version(value: bool) -> None:
    if value:
        print(f"egcnn {egcnn.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def _numbers(option: str, text: str, kind: type = int) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(
            f"{option}: {text!r}; wanted numbers separated by commas, such as 64,64,48"
        ) from None


def _triple(option: str, text: str, kind: type = int) -> tuple[Any, Any, Any]:
    numbers = _numbers(option, text, kind)
    if len(numbers) != 3 or any(number <= 0 for number in numbers):
        raise InputError(f"{option}: {text!r}; wanted three positive numbers, such as 64,64,48")
    return numbers[0], numbers[1], numbers[2]


_SET = typer.Option(
    "--set", metavar="NAME=VALUE", help="Any entry of config.json, such as hard=false; repeatable."
)
_DEVICE = typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Dataset folder; its layout is found by looking.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    edge: Annotated[
        bool | None, typer.Option("--edge/--no-edge", help="With the edge stream (default) or not.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="paper: the equations to the letter, not what works best.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="segnet, unet or vnet.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training cases.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches per step, all devices.")] = None,
    patch: Annotated[str | None, typer.Option(help="Patch in voxels, as D,H,W.")] = None,
    filters: Annotated[int | None, typer.Option(help="Channels at full resolution.")] = None,
    lr: Annotated[float | None, typer.Option(help="Initial learning rate.")] = None,
    lr_power: Annotated[
        float | None, typer.Option(help="Exponent of the learning rate's decay; 0: constant.")
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Drop-out probability.")] = None,
    gate: Annotated[str | None, typer.Option(help="Edge gate: channel or voxel.")] = None,
    gate_activation: Annotated[
        str | None, typer.Option(help="Edge gate: relu_sigmoid or sigmoid.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Voxel size in mm, as X,Y,Z, or 'native' to keep each.")
    ] = None,
    normalization: Annotated[str | None, typer.Option(help="zscore or ct.")] = None,
    flip_axes: Annotated[
        str | None,
        typer.Option(help="Axes mirrored at random, of 0,1,2 (left, back, down), or 'none'."),
    ] = None,
    foreground: Annotated[
        float | None, typer.Option(help="Share of patches that must hold foreground.")
    ] = None,
    semantic_weight: Annotated[float | None, typer.Option(help="Weight of the Dice loss.")] = None,
    consistency_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the consistency loss; without edge stream 0 if not given."),
    ] = None,
    edge_weight: Annotated[float | None, typer.Option(help="Weight of the edge loss.")] = None,
    tau: Annotated[float | None, typer.Option(help="Temperature of the Gumbel softmax.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of cases held out.")] = None,
    split_seed: Annotated[
        int | None, typer.Option(help="Random seed of which cases are held out.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of weights, order, augmentation and noise.")
    ] = None,
    device: Annotated[str, _DEVICE] = "auto",
    devices: Annotated[int | None, typer.Option(help="How many devices share a batch.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed; the device decides.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Reading processes per device.")] = None,
    settings: Annotated[list[str] | None, _SET] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUTPUT.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in OUTPUT.")
    ] = False,
) -> None:
    """Train on a dataset. What is not given is chosen for its volumes; see OUTPUT/config.json."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite: both given; wanted one of them")
    from rich.console import Console

    from egcnn.config import TrainingConfig, plan
    from egcnn.data import open_dataset
    from egcnn.inference import choose_device
    from egcnn.report import show, training_table
    from egcnn.training import CONFIG, Existing, fit, read_config

    given: dict[str, Any] = {
        "edge": edge,
        "backbone": backbone,
        "epochs": epochs,
        "batch_size": batch_size,
        "patch": None if patch is None else _triple("--patch", patch),
        "filters": filters,
        "lr": lr,
        "lr_power": lr_power,
        "dropout": dropout,
        "gate": gate,
        "gate_activation": gate_activation,
        "normalization": normalization,
        "foreground": foreground,
        "semantic": semantic_weight,
        "consistency": consistency_weight,
        "edge_weight": edge_weight,
        "tau": tau,
        "fraction": fraction,
        "split_seed": split_seed,
        "seed": seed,
        "devices": devices,
        "precision": precision,
        "workers": workers,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if spacing is not None:
        native = spacing == "native"
        given["spacing"] = None if native else _triple("--spacing", spacing, float)
    if flip_axes is not None:
        given["flip_axes"] = () if flip_axes == "none" else _numbers("--flip-axes", flip_axes)

    dataset = open_dataset(data)
    where = choose_device(device)
    if resume and not (output / CONFIG).is_file():
        raise InputError(f"--resume: {output} holds no run ({CONFIG} is not there)")
    if resume:
        config = TrainingConfig.from_dict(read_config(output)["config"])
    else:
        spacing_given = {"spacing": given["spacing"]} if "spacing" in given else {}
        config = plan(replace(dataset, **spacing_given), where)
    if preset is not None:
        config = config.preset(preset)
    config = replace(config, **given).parse(settings or [])
    # Lightning starts this command once more for each further device.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    console = Console(quiet=not first)
    labelled = sum(case.label is not None for case in dataset.cases)
    console.print(
        f"{data}: {dataset.layout} layout, {labelled} labelled cases, "
        f"{'edge-gated ' if config.edge else ''}{config.backbone} with {config.filters} filters, "
        f"patch {'x'.join(map(str, config.patch))}, {config.epochs} epochs, batch "
        f"{config.batch_size}, {config.devices} x {where.type} ({config.precision})",
        highlight=False,
        soft_wrap=True,
    )
    existing: Existing = "resume" if resume else "overwrite" if overwrite else "error"
    run = fit(config, dataset, output, existing=existing, device=device)
    if not first:
        return
    names = [dataset.regions.names[channel] for channel in dataset.regions.foreground]
    show(training_table(run.metrics, names, run.seconds))
    console.print(
        f"best epoch: {run.best}\nlast epoch: {run.last}", highlight=False, soft_wrap=True
    )


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt file of 'egcnn train'.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="NIfTI files (3D, or 4D with the modalities last), the files of one case joined "
            "by commas in the order of the modalities, case folders, or dataset folders."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.nii.gz.")],
    edges: Annotated[
        bool,
        typer.Option("--edges", help="Also NAME_edges.nii.gz: edge probabilities per region."),
    ] = False,
    split: Annotated[
        str,
        typer.Option(help="Of a dataset folder: all cases, or the run's train or validation."),
    ] = "all",
    overlap: Annotated[float, typer.Option(help="Of neighbouring windows, 0 to below 1.")] = 0.5,
    device: Annotated[str, _DEVICE] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed; the device decides.")
    ] = None,
) -> None:
    """Segment volumes; label maps come out on each input's own grid."""
    import time

    from rich.console import Console

    from egcnn.checkpoint import load
    from egcnn.inference import choose_device, predict_case, write_prediction

    where = choose_device(device)
    trained = load(checkpoint, where)
    if edges and not trained.spec.edge:
        raise InputError(
            f"--edges: {checkpoint} has no edge stream (it was trained with --no-edge); "
            "wanted a checkpoint that has one"
        )
    cases = _input_cases(inputs, trained, split, checkpoint)
    waiting = Console(stderr=True)
    for case in cases:
        started = time.perf_counter()
        with waiting.status(f"segmenting {case.name}"):
            found = predict_case(trained, case, overlap=overlap, precision=precision)
        path = write_prediction(found, output, case.name, edges=edges)
        print(f"{path}  {time.perf_counter() - started:.1f} s", flush=True)


def _input_cases(inputs: list[str], trained: Trained, split: str, checkpoint: Path) -> list[Case]:
    from egcnn.data.case import Case, stem

    if split not in ("all", "train", "validation"):
        raise InputError(f"--split: {split!r}; wanted all, train or validation")
    cases: list[Case] = []
    for text in inputs:
        files = [Path(part.strip()) for part in text.split(",") if part.strip()]
        if len(files) == 1 and files[0].is_dir():
            cases.extend(_folder_cases(files[0], split, checkpoint))
        elif files:
            stems = [stem(file) for file in files]
            # Characters, not path components: CASE_t1 and CASE_t2 are CASE.
            name = os.path.commonprefix(stems).rstrip("_-. ") or stems[0]  # noqa: RUF071
            cases.append(Case(name, tuple(files)))
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise InputError(
                f"inputs: two cases are named {case.name!r}; wanted different names, since each "
                "prediction is written under its case's"
            )
        seen.add(case.name)
        if len(case.images) not in (1, len(trained.modalities)):
            raise InputError(
                f"{','.join(map(str, case.images))}: {len(case.images)} files; this network takes "
                f"{len(trained.modalities)} modalities ({', '.join(trained.modalities)})"
            )
    return cases


def _folder_cases(folder: Path, split: str, checkpoint: Path) -> list[Case]:
    from egcnn.data import open_dataset
    from egcnn.data.brats import brats_case

    if any(folder.glob(f"{folder.resolve().name}_*.nii*")):
        return [brats_case(folder.resolve())]
    cases = list(open_dataset(folder).cases)
    if split == "all":
        return cases
    from egcnn.training import CONFIG, read_config

    if not (checkpoint.parent / CONFIG).is_file():
        raise InputError(
            f"--split {split}: {checkpoint.parent} has no {CONFIG}; wanted a checkpoint in the "
            "folder of its run"
        )
    names = read_config(checkpoint.parent)["split"][split]
    known = {case.name: case for case in cases}
    absent = [name for name in names if name not in known]
    if absent:
        raise InputError(
            f"--split {split}: {folder} lacks {len(absent)} of the run's {len(names)} cases, such "
            f"as {absent[0]!r}; wanted the dataset that it was trained on"
        )
    return [known[name] for name in names]


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder with NAME.nii.gz per case.")],
    data: Annotated[Path, typer.Argument(help="Dataset folder that holds the truth.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for metrics.csv and metrics.json."),
    ] = None,
) -> None:
    """Compare predictions with the truth: tables, metrics.csv and metrics.json.

    Where predict --edges wrote edge probabilities, they are scored as well.
    """
    from rich.console import Console

    from egcnn.data import open_dataset
    from egcnn.evaluation import evaluate as compare
    from egcnn.evaluation import write_evaluation
    from egcnn.report import edge_table, evaluation_table, show

    evaluation = compare(predictions, open_dataset(data))
    console = Console()
    show(evaluation_table(evaluation))
    show(edge_table(evaluation))
    if evaluation.missing:
        count, all_ = len(evaluation.missing), len(evaluation.missing) + len(evaluation.cases)
        shown = ", ".join(evaluation.missing[:3]) + (", ..." if count > 3 else "")
        console.print(
            f"{count} of {all_} labelled cases have no prediction and are not counted: {shown}",
            highlight=False,
            soft_wrap=True,
        )
    for path in write_evaluation(evaluation, predictions if output is None else output):
        print(path)


@app.command()
def compare(
    data: Annotated[Path, typer.Argument(help="Dataset folder; its layout is found by looking.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of all runs.")],
    backbones: Annotated[
        str, typer.Option(help="Of unet, vnet, segnet, separated by commas.")
    ] = "unet,vnet,segnet",
    arms: Annotated[
        str,
        typer.Option(
            help="Of none (backbone alone), larger (alone, with EG-CNN's parameters), consistency "
            "(alone, with the consistency loss), egcnn and paper (EG-CNN with the preset paper, "
            "whatever --set says), separated by commas."
        ),
    ] = "none,egcnn",
    seeds: Annotated[int, typer.Option(help="Runs of each, with seeds from 0.")] = 3,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE, or several in quotes: also EG-CNN with these settings changed. May "
            "be given repeatedly."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training cases.")] = None,
    settings: Annotated[list[str] | None, _SET] = None,
    device: Annotated[str, _DEVICE] = "auto",
) -> None:
    """Train backbones with and without the edge stream: the paper's table, mean ± deviation.

    Started again with the same OUTPUT, it goes on where it was interrupted.
    """
    from rich.console import Console

    from egcnn import comparison
    from egcnn.config import plan
    from egcnn.data import open_dataset
    from egcnn.inference import choose_device
    from egcnn.nn import BACKBONES
    from egcnn.report import show

    chosen = _choices("--backbones", backbones, tuple(BACKBONES))
    kinds = _choices("--arms", arms, tuple(comparison.KINDS))
    dataset = open_dataset(data)
    config = plan(dataset, choose_device(device))
    if epochs is not None:
        config = replace(config, epochs=epochs)
    config = config.parse(settings or [])
    compared = [comparison.Arm(b, kind) for kind in kinds for b in chosen]  # type: ignore[arg-type]
    for setting in (re.sub(r"\s*=\s*", "=", text) for text in vary or []):
        names = [text.partition("=")[0] for text in setting.split()]
        if taken := {"backbone", "edge", "seed"}.intersection(names):
            raise InputError(
                f"--vary {setting}: {taken.pop()} is not varied here; --backbones, --arms and "
                "--seeds are for that"
            )
        compared += [comparison.Arm(b, "egcnn", setting) for b in chosen]
    console = Console(soft_wrap=True)
    found = comparison.compare(
        dataset, config, output, arms=compared, seeds=seeds, device=device, console=console
    )
    show(comparison.as_table(f"Mean ± deviation, {seeds} seeds", comparison.rows(found)))
    show(comparison.as_table("Edges", comparison.edge_rows(found)))
    if lines := comparison.difference_rows(found):
        show(comparison.as_table("What changes, paired by seed", lines))
    for path in comparison.write_comparison(found, output):
        print(path)


def _choices(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"{option}: {name!r} is unknown; wanted some of {', '.join(known)}")
    if not names:
        raise InputError(f"{option}: none given; wanted some of {', '.join(known)}")
    return list(dict.fromkeys(names))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all of it.")] = Path(
        "demo"
    ),
    cases: Annotated[int, typer.Option(help="Synthetic cases, a quarter of them unseen.")] = 48,
    shape: Annotated[str, typer.Option(help="Their size in voxels, as D,H,W.")] = "40,40,32",
    epochs: Annotated[int, typer.Option(help="Passes over the training cases.")] = 28,
    seed: Annotated[int, typer.Option(help="Of the cases and the training.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the demo in OUTPUT.")
    ] = False,
) -> None:
    """Synthetic tumours in the BraTS layout: train, predict unseen cases, evaluate, draw."""
    from egcnn.demo import run_demo

    run_demo(
        output,
        cases=cases,
        shape=_triple("--shape", shape),
        epochs=epochs,
        seed=seed,
        overwrite=overwrite,
    )


@app.command()
def networks(
    modalities: Annotated[int, typer.Option(help="Image channels.")] = 4,
    regions: Annotated[int, typer.Option(help="Channels of the logits.")] = 3,
    filters: Annotated[int, typer.Option(help="Channels at full resolution.")] = 32,
    shape: Annotated[str, typer.Option(help="Image in voxels, as D,H,W.")] = "160,192,128",
) -> None:
    """Parameters and multiply-adds: each backbone alone, with the edge stream, alone and larger."""
    from egcnn.comparison import networks as compute

    size = _triple("--shape", shape)
    for line in compute(modalities, regions, filters, size):
        print(line)


@app.command()
def info() -> None:
    """Versions, what was built, and what serves each device."""
    import torch

    from egcnn import ops
    from egcnn.checkpoint import versions

    built = ops.backend_info()
    serves = built.pop("serves")
    for name, version in versions().items():
        print(f"{name:<20}{version}")
    for key, value in built.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        if shown != "":
            print(f"{key.replace('_', ' '):<20}{shown}")
    print(f"{'threads':<20}{torch.get_num_threads()}")
    for device, backend in serves.items():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        what = f" ({', '.join(names)})" if device == "cuda" else ""
        print(f"{device + what:<20}{backend} operators")
