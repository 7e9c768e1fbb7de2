"""The programs in ``examples/``, as users run them, against the real service with the shipped model."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.digits import MODELS
from support.serving import LOCAL, PATIENCE_S, Service, run_service

EXAMPLES = Path(__file__).parents[3] / "examples"
PROTO = EXAMPLES.parent / "proto"
PYTHON = ["classify.py", "classify_async.py"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(MODELS, tmp_path_factory.mktemp("service") / "log", "--workers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the picture of the examples and a blank one."""
    blank = tmp_path_factory.mktemp("images") / "blank.png"
    Image.new("L", (40, 50), 255).save(blank)
    return [str(EXAMPLES / "three.png"), str(blank)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Install the example for Node.js, from its lock file, in a copy; return its command."""
    npm = shutil.which("npm") or pytest.skip("npm is not installed")
    copy = tmp_path_factory.mktemp("node")
    shutil.copytree(EXAMPLES / "node", copy / "examples" / "node", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(PROTO, copy / "proto")
    folder = copy / "examples" / "node"
    installed = run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return ["node", str(folder / "classify.mjs")]


@pytest.fixture(scope="module")
def go_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return variables for Go: Debian has grpc-go as source code instead of modules; compiled packages are shared."""
    if missing := [tool for tool in ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc") if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    path = tmp_path_factory.mktemp("go")
    search = f"{path}:{os.environ.get('GOPATH', '/usr/share/gocode')}"
    return {"GO111MODULE": "off", "GOPATH": search, "GOCACHE": str(path / "cache"), "GOFLAGS": "-p=2"}


@pytest.fixture(scope="module")
def go(go_settings: dict[str, str]) -> list[str]:
    """Build the example for Go with Debian's packages, from the commands in its comment; return its command."""
    folder = Path(go_settings["GOPATH"].partition(":")[0], "src", "digits")
    shutil.copytree(EXAMPLES / "go", folder)
    comment = re.sub(r"^//", "", (folder / "classify.go").read_text(), flags=re.MULTILINE)
    generate = re.search(r"protoc (?:.*\\\n)*.*", comment)[0]  # type: ignore[index]
    script = (
        f"set -e; {generate.replace('../../proto', str(PROTO)).replace('../node', str(EXAMPLES / 'node'))}\ngo build"
    )
    built = run(["bash", "-c", script], cwd=folder, **go_settings)
    assert built.returncode == 0, built.stderr
    return [str(folder / "digits")]


def run(
    command: list[str], printed: str = "", cwd: Path = EXAMPLES, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; ``printed`` is its standard input, ``settings`` are environment variables."""
    return subprocess.run(
        command, input=printed, cwd=cwd, env=os.environ | settings, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def python(name: str, address: str) -> list[str]:
    """Return the command of an example in Python."""
    return [sys.executable, str(EXAMPLES / "python" / name), "--address", address]


@pytest.mark.parametrize("name", PYTHON)
def test_python(service: Service, files: list[str], name: str) -> None:
    """The blocking and the asyncio client print the digit of a picture, and the verdict of a blank one."""
    done = run([*python(name, service.grpc_address), *files])
    assert done.returncode == 0, done.stderr
    three, blank = done.stdout.splitlines()
    assert re.fullmatch(r".*three\.png: 3 .*", three)
    assert re.fullmatch(r".*blank\.png: .*BLANK", blank)


def test_python_stream(service: Service, files: list[str]) -> None:
    """The stream answers each name on standard input before the next one arrives."""
    three, blank = files
    command = python("classify_stream.py", service.grpc_address)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        for path, answer in ((three, "3 ACCEPTED"), (blank, "- BLANK"), (three, "3 ACCEPTED")):
            running.stdin.write(f"{path}\n")
            running.stdin.flush()
            assert running.stdout.readline() == f"{path}: {answer}\n"
        running.stdin.close()
        assert running.wait(PATIENCE_S) == 0


def printed_lines(command: list[str], files: list[str]) -> list[str]:
    """Return what an example prints for these files, after checking that it names a file that does not exist."""
    failed = run([*command, "missing.png"])
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "missing.png" in failed.stderr

    done = run([*command, *files])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_node(service: Service, files: list[str], node: list[str]) -> None:
    """The client for Node.js prints digit, verdict and the next probable digits; a wrong file is named."""
    three, blank = printed_lines([*node, "--address", service.grpc_address], files)
    assert re.fullmatch(r".*three\.png: 3 \d\.\d+ VERDICT_ACCEPTED \(then \d \d\.\d+, \d \d\.\d+\)", three)
    assert re.fullmatch(r".*blank\.png: - \d\.\d+ VERDICT_BLANK .*", blank)


def test_go(service: Service, files: list[str], go: list[str]) -> None:
    """The client for Go prints digit and verdict; a wrong file is named, and so is the address without a service."""
    three, blank = printed_lines([*go, "--address", service.grpc_address], files)
    assert re.fullmatch(r".*three\.png: 3 \d\.\d+ VERDICT_ACCEPTED", three)
    assert re.fullmatch(r".*blank\.png:  \d\.\d+ VERDICT_BLANK", blank)

    unreachable = run([*go, "--address", f"{LOCAL}:1", *files])
    assert unreachable.returncode == 1
    assert f"{LOCAL}:1" in unreachable.stderr


@pytest.mark.usefixtures("go")
def test_go_by_http(service: Service, go_settings: dict[str, str], tmp_path: Path) -> None:
    """The program in the guide to HTTP prints digit and verdict."""
    page = (EXAMPLES.parent / "docs" / "how-to" / "http.md").read_text()
    program = re.search(r"^```go\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]  # type: ignore[index]
    (tmp_path / "main.go").write_text(program.replace("http://127.0.0.1:8080", service.http_url))
    shutil.copy(EXAMPLES / "three.png", tmp_path / "your-digit.png")
    done = run(["go", "run", "main.go"], cwd=tmp_path, **go_settings)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"3 \d\.\d+ VERDICT_ACCEPTED\n", done.stdout)


def test_buf_curl(service: Service) -> None:
    """``buf curl`` sends the request from a file; the schema comes from reflection."""
    buf = str(Path(sys.executable).with_name("buf"))
    url = f"http://{service.grpc_address}/digitserve.v1.DigitService/Classify"
    done = run([buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", "@request.json", url])
    assert done.returncode == 0, done.stderr
    (prediction,) = json.loads(done.stdout)["predictions"]
    assert (prediction["label"], prediction["verdict"]) == ("3", "VERDICT_ACCEPTED")
    assert len(prediction["top"]) == 3


def assert_no_service(command: list[str], printed: str = "") -> None:
    """Run an example without a service: exit code 1, and one line that says what failed."""
    done = run(command, printed)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert re.search("no service answers|No connection established", done.stderr)


@pytest.mark.parametrize("name", [*PYTHON, "classify_stream.py", "read_form.py"])
def test_python_without_a_service(files: list[str], name: str) -> None:
    """Without a service, the examples in Python print one line and end with exit code 1."""
    stream = name == "classify_stream.py"
    assert_no_service([*python(name, f"{LOCAL}:1"), *([] if stream else files)], files[0] if stream else "")


def test_node_without_a_service(files: list[str], node: list[str]) -> None:
    """Without a service, the example for Node.js prints one line and ends with exit code 1."""
    assert_no_service([*node, "--address", f"{LOCAL}:1", *files])
