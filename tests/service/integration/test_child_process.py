"""Child processes and their message channel: nothing that a child prints, imports or does breaks the channel."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from digitserve import child_process
from digitserve.child_process import AsyncChild, ChannelClosed, Child
from support.child_modules import child_processes, open_descriptors, write_module
from support.serving import PATIENCE_S, wait_until

Write = Callable[[str], str]

ECHO = """
    from digitserve.child_process import Channel, ChannelClosed

    channel = Channel.to_parent()
    try:
        while True:
            channel.send(channel.receive())
    except ChannelClosed:
        pass
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes the module of a child process and returns its name."""
    return lambda source: write_module(tmp_path / "modules", "child_of_test", source, monkeypatch)


def exchange(module: str, *messages: Any) -> list[Any]:
    """Start a child, send it messages one by one, and return its answers."""
    answers = []
    with Child(module) as child:
        for message in messages:
            child.channel.send(message)
            answers.append(child.channel.receive(PATIENCE_S))
    return answers


def exchange_async(module: str, *messages: Any) -> list[Any]:
    """Do as ``exchange`` does, with ``AsyncChild``."""

    async def run() -> list[Any]:
        answers = []
        async with await AsyncChild.start(module) as child:
            for message in messages:
                await child.send(message)
                answers.append(await child.receive())
        return answers

    return asyncio.run(run())


EXCHANGES = pytest.mark.parametrize("exchanged", [exchange, exchange_async])


@EXCHANGES
def test_messages_arrive_unchanged(exchanged: Callable[..., list[Any]], write: Write) -> None:
    """JSON values of any kind arrive in order; line breaks and other scripts in them do not matter."""
    messages = [{"event": "ready", "values": [1, 2.5, None, True]}, "two\nlines\r\n", "größer → 数字", [], 0]
    assert exchanged(write(ECHO), *messages) == messages


@EXCHANGES
def test_long_messages_arrive(exchanged: Callable[..., list[Any]], write: Write) -> None:
    """A message of a megabyte passes in both directions: more than a socket's buffer and than asyncio's default limit."""
    message = {"text": "x" * (1 << 20)}
    assert exchanged(write(ECHO), message) == [message]


@EXCHANGES
def test_printing_does_not_disturb_the_channel(
    exchanged: Callable[..., list[Any]], write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a child prints before and after its messages, through Python or directly, goes to standard error."""
    module = write("""
        import os
        print("printed before", flush=True)
        from digitserve.child_process import Channel
        channel = Channel.to_parent()
        message = channel.receive()
        os.write(1, b"written directly\\n")
        channel.send(message)
        print("printed after", flush=True)
        channel.receive()
    """)
    assert exchanged(module, {"event": "ready"}) == [{"event": "ready"}]
    output, errors = capfd.readouterr()
    assert output == ""
    assert "printed before" in errors
    assert "written directly" in errors


@EXCHANGES
def test_a_sitecustomize_that_prints_does_not_disturb_the_channel(
    exchanged: Callable[..., list[Any]], write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python imports ``sitecustomize`` before everything else; its output goes to standard error."""
    module = write(ECHO)
    (tmp_path / "modules" / "sitecustomize.py").write_text("print('sitecustomize prints', flush=True)\n")
    assert exchanged(module, 5) == [5]
    output, errors = capfd.readouterr()
    assert output == ""
    assert "sitecustomize prints" in errors


@EXCHANGES
def test_modules_in_the_working_directory_are_not_imported(
    exchanged: Callable[..., list[Any]], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``random.py`` or ``queue.py`` in the working directory does not replace the standard library's."""
    module = write("""
        import queue
        import random
        from digitserve.child_process import Channel
        channel = Channel.to_parent()
        channel.receive()
        channel.send([queue.__file__, random.__file__])
    """)
    folder = tmp_path / "working-directory"
    folder.mkdir()
    for name in ("queue", "random"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported from the working directory')\n")
    monkeypatch.chdir(folder)
    (paths,) = exchanged(module, None)
    assert not any(path.startswith(str(folder)) for path in paths)


@EXCHANGES
@pytest.mark.parametrize(
    "end", ["raise SystemExit(3)", "import os; os.abort()", "channel._socket.send(b'half a mess')", "channel.close()"]
)
def test_a_child_that_ends_closes_the_channel(exchanged: Callable[..., list[Any]], write: Write, end: str) -> None:
    """A child that exits, crashes, closes its end or ends within a message gives ``ChannelClosed``."""
    module = write(f"""
        from digitserve.child_process import Channel
        channel = Channel.to_parent()
        {end}
    """)
    with pytest.raises(ChannelClosed):
        exchanged(module, None)


@EXCHANGES
def test_a_message_that_is_not_json_is_a_value_error(exchanged: Callable[..., list[Any]], write: Write) -> None:
    """A child that writes something else to the channel is an error, not silence."""
    module = write("""
        from digitserve.child_process import Channel
        channel = Channel.to_parent()
        channel._socket.sendall(b"no JSON\\xff\\n")
        channel.receive()
        channel.receive()
    """)
    with pytest.raises(ValueError):  # noqa: PT011 - json's and unicode's errors
        exchanged(module, None)


def test_a_message_beyond_the_limit_is_a_value_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """An asyncio parent bounds the memory that a message takes."""
    monkeypatch.setattr(child_process, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(ValueError):  # noqa: PT011 - asyncio's error
        exchange_async(write(ECHO), "x" * 5000)


def test_a_child_that_does_not_answer_is_a_timeout(write: Write) -> None:
    """``receive`` with a limit raises ``TimeoutError``, and the child is killed at the end of ``with``."""
    with Child(write(ECHO)) as child, pytest.raises(TimeoutError):
        child.channel.receive(0.01)
    assert child.process.returncode == -signal.SIGKILL


def test_a_child_can_answer_after_the_last_message(write: Write) -> None:
    """``send_last`` ends only the messages to the child: the child can still send, and chooses its exit code."""
    module = write("""
        from digitserve.child_process import Channel, ChannelClosed
        channel = Channel.to_parent()
        last = channel.receive()
        try:
            channel.receive()
        except ChannelClosed:
            channel.send(["got the end", last])
        raise SystemExit(5)
    """)

    async def run() -> tuple[list[str], int]:
        async with await AsyncChild.start(module) as child:
            child.send_last("last")
            return await child.receive(), await child.wait()

    assert asyncio.run(run()) == (["got the end", "last"], 5)


def test_sending_to_a_child_that_has_ended(write: Write) -> None:
    """Sending is no error; the parent gets ``ChannelClosed`` when it receives, blocking or with asyncio."""
    module = write("raise SystemExit")
    with Child(module) as child:
        child.process.wait()
        child.channel.send("x")
        with pytest.raises(ChannelClosed):
            child.channel.receive(PATIENCE_S)

    async def run() -> None:
        async with await AsyncChild.start(module) as child:
            await child.wait()
            await child.send("x")
            child.send_last("last")
            await child.receive()

    with pytest.raises(ChannelClosed):
        asyncio.run(run())


def test_a_child_notices_the_end_of_its_parent(write: Write, tmp_path: Path) -> None:
    """When the parent is killed, its child gets ``ChannelClosed``."""
    module = write(f"""
        from pathlib import Path
        from digitserve.child_process import Channel, ChannelClosed
        channel = Channel.to_parent()
        channel.send("started")
        try:
            channel.receive()
        except ChannelClosed:
            Path({str(tmp_path / "noticed")!r}).touch()
    """)
    program = f"""
import os, signal
from digitserve.child_process import Child
child = Child("{module}")
child.channel.receive()
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run([sys.executable, "-c", program], check=False, timeout=PATIENCE_S)
    assert parent.returncode == -signal.SIGKILL
    wait_until((tmp_path / "noticed").exists, "the child notices the end of its parent")


def test_processes_started_by_a_child_do_not_hold_the_channel_open(write: Write) -> None:
    """The channel closes with the child, even if a process that the child started still runs."""
    module = write("""
        import subprocess
        from digitserve.child_process import Channel
        channel = Channel.to_parent()
        channel.send(subprocess.Popen(["sleep", "600"], close_fds=False).pid)
    """)
    with Child(module) as child:
        grandchild = child.channel.receive(PATIENCE_S)
        try:
            with pytest.raises(ChannelClosed):
                child.channel.receive(PATIENCE_S)
        finally:
            os.kill(grandchild, signal.SIGKILL)


@EXCHANGES
def test_ctrl_c_is_left_to_the_parent(exchanged: Callable[..., list[Any]], write: Write) -> None:
    """SIGINT for the whole process group, as from a terminal, does not end a child, whatever it is doing; the parent, and
    processes that it starts otherwise, get it as before.
    """
    module = write("""
    import os, signal
    os.kill(os.getpid(), signal.SIGINT)
    """ + ECHO)  # fmt: skip
    assert exchanged(module, 1) == [1]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@EXCHANGES
def test_no_process_and_no_descriptor_is_left(exchanged: Callable[..., list[Any]], write: Write) -> None:
    """After ``with``, the process was waited for and each descriptor is closed: also if the child cannot be started."""
    module = write(ECHO)
    exchanged(module, 1)
    descriptors, processes = open_descriptors(), child_processes()
    for _ in range(3):
        exchanged(module, 1)
    assert open_descriptors() <= descriptors
    assert child_processes() <= processes


@EXCHANGES
def test_no_descriptor_is_left_by_a_child_that_cannot_start(
    exchanged: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the program does not exist, the error is raised and the channel is closed."""
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with pytest.raises(FileNotFoundError):
        exchanged("any")
    descriptors = open_descriptors()
    with pytest.raises(FileNotFoundError):
        exchanged("any")
    assert open_descriptors() <= descriptors


@pytest.mark.parametrize("missing", ["socket.socketpair", "os.pidfd_open", "asyncio.open_unix_connection"])
def test_nothing_is_left_of_a_child_without_descriptors(
    write: Write, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """If the descriptors run out while a child is started, the error is raised, and no process or descriptor is left."""
    module = write(ECHO)
    exchange_async(module, 1)
    descriptors, processes = open_descriptors(), child_processes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def start() -> None:
        # Patched here, because the event loop opens a socket pair when it starts.
        monkeypatch.setattr(missing, fail)
        await AsyncChild.start(module)

    with pytest.raises(OSError, match="Too many open files"):
        asyncio.run(start())
    assert open_descriptors() <= descriptors
    assert child_processes() <= processes


def test_killing_a_child_as_it_ends_keeps_its_exit_code(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """A kill that comes as the child ends neither loses its exit code nor makes asyncio warn, whichever comes first."""
    module = write("import sys\nsys.exit(3)")

    async def run() -> int:
        async with await AsyncChild.start(module) as child:
            with pytest.raises(ChannelClosed):
                await child.receive()
            return await child.wait()

    async def kill() -> int:
        child = await AsyncChild.start(module)
        with pytest.raises(ChannelClosed):
            await child.receive()
        child.kill()
        code = await child.wait()
        child.close()
        return code

    assert asyncio.run(run()) == 3
    assert {asyncio.run(kill()) for _ in range(40)} <= {3, -signal.SIGKILL}
    assert caplog.messages == []
