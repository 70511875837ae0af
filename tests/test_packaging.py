"""The build, the installed files, and the messages of builds that fail."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parents[1]
CXX = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "clang++"


def package_file(package: str, name: str) -> str | None:
    """The file of this name in an installed package."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == name), None)


without_nvcc = pytest.mark.skipif(
    package_file("nvidia-cuda-nvcc", "nvcc") is not None,
    reason="nvidia-cuda-nvcc is installed, so nvcc cannot be hidden",
)


def driver(folder: Path, version: int) -> dict[str, str]:
    """An environment with a fake NVIDIA driver that only reports its CUDA version."""
    source = folder / "driver.cpp"
    source.write_text(f'extern "C" int cuDriverGetVersion(int* v) {{ *v = {version}; return 0; }}')
    library = folder / "libcuda.so.1"
    subprocess.run([CXX, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


@pytest.fixture
def cuda_build() -> ModuleType:
    """The compiled module, which has a CUDA part."""
    module: ModuleType = pytest.importorskip("egcnn._C")
    info = module.build_info()
    if not info["cuda_architectures"]:
        pytest.skip(f"CUDA {info['cuda_note']}")
    return module


def build(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=PROJECT,
        env={**os.environ, "EGCNN_CUDA": "0", **environment},
        capture_output=True,
        text=True,
    )


def test_installed_files() -> None:
    try:
        files = [str(file) for file in importlib.metadata.files("egcnn") or []]
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("egcnn runs from its checkout here: there is no wheel to look into")
    assert "egcnn/py.typed" in files
    assert any(file.startswith("egcnn/_C.") and file.endswith(".so") for file in files)
    assert not [f for f in files if f.endswith((".cpp", ".cu", ".h")) or "tests/" in f]
    assert {file.split("/")[0].split("-")[0] for file in files} <= {"egcnn", "..", "bin"}


def test_built_package_holds_every_module(tmp_path: Path) -> None:
    """Those of folders that nothing imports too, such as the trainer that nnU-Net looks for."""
    folder = tmp_path / "built"
    result = build(["egg_info", "-e", str(tmp_path), "build_py", "-d", str(folder)], tmp_path)
    assert result.returncode == 0, result.stderr
    built = {path.relative_to(folder) for path in folder.rglob("*.py")}
    assert built == {path.relative_to(PROJECT) for path in (PROJECT / "egcnn").rglob("*.py")}


def test_source_distribution_holds_the_kernels(tmp_path: Path) -> None:
    result = build(["egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path)], tmp_path)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("egcnn-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    for name in ("csrc/ops.h", "csrc/cpu/edge_gate/edge_gate.cpp", "csrc/math/philox.h"):
        assert name in names
    for name in ("build_backend.py", "setup.py", "csrc/cuda/kernels.cu", "csrc/operators.inc"):
        assert name in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler was found on PATH"),
        ({"EGCNN_CUDA": "2"}, "EGCNN_CUDA is '2'; expected auto, 0 or 1"),
        pytest.param(
            {"EGCNN_CUDA": "1", "CUDA_HOME": "/nowhere", "PATH": "/nowhere", "CXX": sys.executable},
            "EGCNN_CUDA=1 and no nvcc was found",
            marks=without_nvcc,
        ),
    ],
)
def test_a_build_that_cannot_succeed_says_why(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    command = ["build_ext", "-t", str(tmp_path), "-b", str(tmp_path)]
    result = build(command, tmp_path, **environment)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("egcnn:")]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert "Traceback" not in result.stderr


def test_a_kernel_that_is_declared_and_not_defined_fails_the_build(tmp_path: Path) -> None:
    module = tmp_path / "module.cpp"
    module.write_text("void blur_launch(); void call() { blur_launch(); }")
    compiler = tmp_path / "c++"
    compiler.write_text(
        f"""#!/bin/sh
        for output; do :; done
        case " $* " in
          *" --version "*) echo 1.0 ;;
          *" -shared "*) exec {CXX} -shared -fPIC {module} -o "$output" ;;
          *) : > "$output" ;;
        esac
        """
    )
    compiler.chmod(0o755)
    command = ["build_ext", "-t", str(tmp_path / "objects"), "-b", str(tmp_path)]
    result = build(command, tmp_path, CXX=str(compiler))
    assert result.returncode == 1
    assert "egcnn: the kernels compiled but do not load: OSError: " in result.stderr
    assert "undefined symbol: _Z11blur_launchv" in result.stderr
    assert not list(tmp_path.rglob("_C*"))


#: Stands in for nvcc: compiles CUDA sources as C++ and links.
NVCC = f"""#!/bin/sh
case $1 in
  --version) echo "release 13.0, V" ;;
  --list-gpu-code) echo sm_90 ;;
  *) for word; do
       shift
       case $word in
         *.cu) set -- "$@" -x c++ "$word" ;;
         -std=*|-O3|-MD|-MF|-c|-o|-shared|*.d|*.o|*.so|-L*) set -- "$@" "$word" ;;
       esac
     done
     exec {CXX} -fPIC "$@" ;;
esac
"""


def build_small(root: Path, *options: str, cuda: str) -> subprocess.CompletedProcess[str]:
    """Build two kernels of one line in a folder, with compilers that are in it."""
    for part in ("csrc/cpu/blur", "csrc/cuda/blur", "bin"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for name in ("setup.py", "build_backend.py"):
        shutil.copy(PROJECT / name, root)
    (root / "csrc/bindings.cpp").write_text('#include "build_info.h"\nint module = 0;')
    (root / "csrc/cpu/blur/blur.cpp").write_text("namespace EGCNN_ISA { int blur = 0; }")
    (root / "csrc/cuda/blur/blur.cu").write_text('#include "blur.h"\nint on_cuda = 0;')
    (root / "csrc/cuda/blur/blur.h").touch()
    (root / "bin/nvcc").write_text(NVCC)
    (root / "bin/nvcc").chmod(0o755)
    if not (root / "bin/c++").exists():
        (root / "bin/c++").symlink_to(str(shutil.which(CXX)))
    path = os.pathsep.join([str(root / "bin"), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *options],
        cwd=root,
        env={
            **os.environ,
            **{"EGCNN_CUDA": cuda, "CUDA_HOME": str(root), "CXX": "c++", "PATH": path},
        },
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "cuda"),
    [
        ("it's `touch ran`  $HOME $(touch ran) a&b;#\"c\\n", "0"),
        ("it's  $HOME a&b;#", "1"),
    ],
)
def test_a_build_in_a_folder_of_any_name(tmp_path: Path, name: str, cuda: str) -> None:
    """Sources, objects and compilers below names that ninja or a shell would take apart."""
    for options in ([], ["-t", str(tmp_path / "a 'b"), "-b", str(tmp_path / "`touch ran` $x:")]):
        run = build_small(tmp_path / name, *options, cuda=cuda)
        assert run.returncode == 0, run.stdout + run.stderr
    assert len(list(tmp_path.rglob("_C*.so"))) == 2
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("name", ["a`touch ran`", "$(touch ran)", 'a"b', "a\\b"])
def test_a_name_that_nvcc_would_run_is_refused(tmp_path: Path, name: str) -> None:
    """nvcc itself gives the full path of a source to a shell, in double quotes."""
    run = build_small(tmp_path / name, cuda="1")
    assert run.returncode == 1
    assert run.stderr.startswith("egcnn: nvcc would let a shell read the ")
    assert not list(tmp_path.rglob("ran"))


def test_a_build_says_that_the_driver_is_too_old_for_its_compiler(tmp_path: Path) -> None:
    """With the compilers' parts taken by programs that fail: the sentence comes before them."""
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin/nvcc"
    nvcc.write_text(
        '#!/bin/sh\ncase $1 in --version) echo "release 13.0, V";; *) echo sm_90;; esac\n'
    )
    nvcc.chmod(0o755)
    command = ["build_ext", "-t", str(tmp_path / "t"), "-b", str(tmp_path / "b")]
    environment = {"EGCNN_CUDA": "1", "CUDA_HOME": str(tmp_path), "CXX": "false"}
    result = build(command, tmp_path, **environment, **driver(tmp_path, 12080))
    assert (
        "egcnn: the NVIDIA driver of this machine supports CUDA 12.8 and will not run what nvcc "
        "13.0 compiles; CUDA_HOME=(a CUDA 12 toolkit) will do" in result.stdout.splitlines()
    )
    new = build(command, tmp_path, **environment, **driver(tmp_path, 13000))
    assert "will not run" not in new.stdout


@without_nvcc
@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (0, "packages, and there is no NVIDIA driver"),
        (12080, "packages; the NVIDIA driver supports CUDA 12.8, too old for the compiler"),
        (13000, "packages; pip install 'cuda-toolkit"),
    ],
)
def test_a_build_without_cuda_says_why(tmp_path: Path, version: int, sentence: str) -> None:
    nowhere = {"EGCNN_CUDA": "auto", "CUDA_HOME": "", "PATH": "/nowhere", "CXX": sys.executable}
    command = ["build_ext", "-t", str(tmp_path), "-b", str(tmp_path)]
    result = build(command, tmp_path, **nowhere, **driver(tmp_path, version))
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("egcnn:"))
    assert "CUDA skipped: no nvcc was found in CUDA_HOME/bin, on PATH or among" in line
    assert sentence in line


def ask_backend(expression: str, **environment: str) -> str:
    """The build backend's answer with no toolkit other than that in ``environment``."""
    run = subprocess.run(
        [sys.executable, "-c", f"import build_backend; print(build_backend.{expression})"],
        cwd=PROJECT,
        env={**os.environ, "CUDA_HOME": "", "PATH": "/nowhere", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


@without_nvcc
@pytest.mark.parametrize(
    ("choice", "version", "fetched"),
    [
        ("auto", 0, False),
        ("auto", 12080, False),
        ("auto", 13000, True),
        ("auto", 14010, True),
        ("0", 13000, False),
        ("1", 0, True),
    ],
)
def test_a_missing_compiler_is_a_build_requirement(
    tmp_path: Path, choice: str, version: int, fetched: bool
) -> None:
    environment = {"EGCNN_CUDA": choice, **driver(tmp_path, version)}
    asked = ask_backend("get_requires_for_build_wheel()", **environment)
    assert asked == ("['cuda-toolkit[cccl,nvcc]==13.0.*']" if fetched else "[]")


def test_a_toolkit_goes_before_the_registry_and_cuda_home_before_path(tmp_path: Path) -> None:
    for name in ("home/bin", "path"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "nvcc").touch(mode=0o755)
    home, path = {"CUDA_HOME": str(tmp_path / "home")}, {"PATH": str(tmp_path / "path")}
    for environment in (home, path):
        asked = ask_backend("get_requires_for_build_wheel()", EGCNN_CUDA="1", **environment)
        assert asked == "[]"
    assert ask_backend("find_nvcc()", **path) == str(tmp_path / "path/nvcc")
    assert ask_backend("find_nvcc()", **home, **path) == str(tmp_path / "home/bin/nvcc")


def cuobjdump(module: ModuleType, *options: str) -> str:
    """What cuobjdump prints of the GPU code in a module; skips the test without cuobjdump."""
    program = package_file("nvidia-cuda-cuobjdump", "cuobjdump") or shutil.which("cuobjdump")
    if not program:
        pytest.skip("there is no cuobjdump; pip install nvidia-cuda-cuobjdump provides it")
    command = [program, *options, str(module.__file__)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_module_holds_code_for_every_architecture_asked_for(cuda_build: ModuleType) -> None:
    def images(kind: str) -> dict[str, list[str]]:
        """Architecture -> units, from lines such as 'ELF file    1: voxel.sm_90.cubin'."""
        found = defaultdict(list)
        for line in cuobjdump(cuda_build, f"--list-{kind}").splitlines():
            unit, architecture, _ = line.split()[-1].rsplit(".", 2)
            found[architecture.removeprefix("sm_")].append(unit)
        return found

    asked = cuda_build.build_info()["cuda_architectures"].split()
    elf, ptx = images("elf"), images("ptx")
    assert sorted(elf, key=int) == asked
    assert len(elf[asked[0]]) > 10
    # Folders have units of one name, so that a name may be there several times.
    assert all(sorted(units) == sorted(elf[asked[0]]) for units in elf.values()), elf
    assert ptx.keys() == {asked[-1]}
    assert sorted(ptx[asked[-1]]) == sorted(elf[asked[-1]])


def test_no_kernel_spills(cuda_build: ModuleType) -> None:
    """On sm_90, but for float64, which is only for gradcheck."""
    if "90" not in cuda_build.build_info()["cuda_architectures"].split():
        pytest.skip("this build has no code for sm_90")
    resources = cuobjdump(cuda_build, "--dump-resource-usage", "--gpu-architecture", "sm_90")
    # Spilled registers lie in the stack frame, which kernels without them do not have.
    stacks = dict(re.findall(r"Function (\w+):\n.* STACK:(\d+)", resources))
    assert len(stacks) > 100
    # In mangled names, "d" is double; before it stand "I" and the template's values ("L...E").
    double = re.compile(r"_kernelI(L\w+?E)*d")
    assert not [name for name, stack in stacks.items() if stack != "0" and not double.search(name)]


def test_a_build_tells_of_a_driver_too_old_for_it(cuda_build: ModuleType, tmp_path: Path) -> None:
    toolkit = int(cuda_build.build_info()["cuda_toolkit"].split(".")[0])
    package = Path(str(cuda_build.__file__)).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", "from egcnn import _C; print(_C.cuda_device_status())"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(package),
            **driver(tmp_path, 1000 * toolkit - 920),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(
        f"the NVIDIA driver supports CUDA up to {toolkit - 1}.8, "
        f"and this build needs a driver for CUDA {toolkit}.0 or later"
    )


# The part of the CUDA runtime that device_status.cu uses, configured by environment variables.
RUNTIME = """
#include <cstdlib>
#define __CUDA_ARCH_LIST__ 750, 900
#define __global__
enum cudaError_t { cudaSuccess, noDevice, noKernelImage };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
struct cudaFuncAttributes {};
inline int said(const char* name) { return std::atoi(std::getenv(name)); }
inline cudaError_t cudaDriverGetVersion(int* v) { *v = said("DRIVER"); return cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* v) { *v = said("TOOLKIT"); return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int*) { return said("GPU") ? cudaSuccess : noDevice; }
inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr attribute, int) {
  *v = attribute == cudaDevAttrComputeCapabilityMajor ? said("GPU") / 10 : said("GPU") % 10;
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, void (*)()) {
  return said("GPU") < 75 ? noKernelImage : cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == noDevice ? "no device is detected" : "no kernel image is available";
}
"""


@pytest.fixture(scope="module")
def device_status(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """device_status.cu compiled as a program, with a fake runtime."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "cuda_runtime.h").write_text(RUNTIME)
    (folder / "main.cpp").write_text(
        f"""#include "{PROJECT}/csrc/cuda/device_status.cu"
        #include <cstdio>
        int main() {{ std::puts(egcnn::cuda::device_status()); }}"""
    )
    command = [CXX, "-std=c++17", f"-I{folder}", str(folder / "main.cpp"), "-o"]
    subprocess.run([*command, str(folder / "status")], check=True)
    return folder / "status"


OLD = "the NVIDIA driver supports CUDA up to {}, and this build needs a driver for CUDA {} or later"


@pytest.mark.parametrize(
    ("toolkit", "version", "gpu", "sentence"),
    [
        (13020, 0, 0, "there is no NVIDIA driver on this machine"),
        (
            13020,
            12080,
            90,
            OLD.format("12.8", "13.0")
            + ": update it to 580 or later, or build egcnn with an nvcc of CUDA 12 in CUDA_HOME",
        ),
        (13020, 11080, 90, OLD.format("11.8", "13.0") + ": update it to 580 or later"),
        (12040, 11080, 90, OLD.format("11.8", "12.0") + ": update it to 525 or later"),
        (
            14000,
            13000,
            90,
            OLD.format("13.0", "14.0") + ", or build egcnn with an nvcc of CUDA 13 in CUDA_HOME",
        ),
        (13020, 13000, 0, "no device is detected"),
        (
            13020,
            13000,
            70,
            "this build holds code for GPU architectures 75 90 and this GPU has 70, "
            "where the driver says: no kernel image is available",
        ),
        (13020, 13000, 75, ""),  # the driver of an earlier minor version than the toolkit
        (12080, 12000, 90, ""),
        (13020, 14000, 90, ""),
    ],
)
def test_what_a_build_says_of_a_machine(
    device_status: Path, toolkit: int, version: int, gpu: int, sentence: str
) -> None:
    environment = {"TOOLKIT": str(toolkit), "DRIVER": str(version), "GPU": str(gpu)}
    run = subprocess.run([device_status], env=environment, capture_output=True, text=True)
    assert run.stdout.rstrip("\n") == sentence
