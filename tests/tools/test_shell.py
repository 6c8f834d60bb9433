"""The shell tool: what its commands may, and what they are kept from. Every test here really runs bubblewrap."""

import asyncio
import os
import secrets
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydantic import ValidationError

from domain.errors import ToolFailed
from domain.tools import ToolContext
from tests.tools.conftest import tool_use
from tests.tools.shells import LIMITS, MARKS, QUOTA, SHELL, alive, python, refused, run, until
from tools.files import Read, Write
from tools.find import Glob, Grep
from tools.publish import PublishArtifact
from tools.sandbox import NoSandbox, Sandbox, ShellLimits
from tools.shell import Bash, BashArguments

pytestmark = MARKS


@pytest.fixture
def context(tmp_path: Path) -> ToolContext:
    return ToolContext("wrkspc_1", "sesn_1", "run_1", "toolu_1", tmp_path / "files/wrkspc_1/sesn_1", QUOTA)


async def test_a_command(context: ToolContext) -> None:
    assert await run(context, "pwd; echo hello | tee a.txt; echo no >&2") == "/workspace\nhello\nno\n"
    assert await run(context, "cat a.txt; exit 3") == "hello\n[exit code 3]"
    assert await run(context, "kill -9 $$") == "[exit code 137]"
    assert await run(context, "true") == "(no output)"
    assert (context.directory / "a.txt").read_text() == "hello\n"
    assert "nothing to restart" in await SHELL.call(BashArguments(restart=True), context)
    with pytest.raises(ToolFailed, match="give a command"):
        await SHELL.call(BashArguments(), context)
    with pytest.raises(ValidationError, match="NUL"):
        BashArguments(command="a\0b")


async def test_it_and_the_file_tools_share_the_directory(context: ToolContext) -> None:
    await Write().call(Write.arguments(file_path="a/b.txt", content="one"), context)
    assert await run(context, "cat a/b.txt; echo -n two > a/b.txt; mkdir -p c; echo three > c/d.txt") == "one"

    assert await Read().call(Read.arguments(file_path="a/b.txt"), context) == "two"
    await Write().call(Write.arguments(file_path="c/d.txt", content="four"), tool_use(context.directory, "toolu_2"))
    assert await run(context, "cat c/d.txt; ls -A .perdure; rm -rf .perdure 2>&1 | grep -c busy; touch .perdure/x 2>&1") == (
        "four1\ntouch: cannot touch '.perdure/x': Read-only file system\n[exit code 1]"
    )


async def test_it_is_nobody_and_sees_nothing(context: ToolContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = f"secret-{secrets.token_hex(8)}"
    monkeypatch.setenv("ANTHROPIC_API_KEY", secret)
    other = context.directory.parent / "sesn_2"
    other.mkdir(parents=True)
    for folder in (tmp_path, other, Path("/tmp"), Path("/dev/shm")):
        (folder / f"{secret}.env").write_text(secret)
    try:
        seen = await run(
            context,
            "id -u; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline;"
            f"ls /proc | grep -c '^[0-9]'; ls -A / /home /root /mnt /srv /var /opt /run /sys /boot /media {tmp_path} 2>&1;"
            f"cat {other}/*.env {tmp_path}/*.env ../sesn_2/*.env .env ../.env /tmp/*.env /dev/shm/*.env /etc/shadow 2>&1;"
            f"cat /proc/1/root/{tmp_path}/*.env /proc/{os.getpid()}/environ /proc/{os.getpid()}/root/etc/passwd 2>&1;"
            f"find / -name '{secret[:12]}*' 2>/dev/null; ls -l /proc/self/fd; cat /etc/passwd",
        )
    finally:
        for folder in (Path("/tmp"), Path("/dev/shm")):
            (folder / f"{secret}.env").unlink()

    assert secret not in seen.replace(f"name '{secret[:12]}", "")
    assert seen.startswith("1000\n")
    assert seen.count("0000000000000000") == 5
    assert "NoNewPrivs:\t1" in seen
    assert "Seccomp:\t2" in seen
    for name in ("home", "root", "mnt", "srv", "var", "opt", "run", "sys", "boot", "media"):
        assert f"cannot access '/{name}'" in seen
    assert "PERDURE" not in seen
    assert str(Path.cwd()) not in seen
    assert len(seen.partition("total 0")[2].partition("root:")[0].strip().splitlines()) == 4  # 0, 1, 2 and ls's own


@pytest.mark.skipif(not os.access("/usr/local", os.W_OK), reason="the tests may not write below /usr")
async def test_a_service_below_usr_shows_none_of_its_data(context: ToolContext) -> None:
    """/usr is what programs need; /usr/src/app is where many an image has its service, .env and data folder included."""
    with TemporaryDirectory(dir="/usr/local") as home:
        app = Path(home)
        (app / "data/files").mkdir(parents=True)
        (app / "data/perdure.db").write_text("the secret rows")
        (app / ".env").write_text("KEY=secret")
        for path in (app, app / "data", app / "data/files", app / ".env", app / "data/perdure.db"):
            path.chmod(0o777)
        looks = f"find {app} -type f -size +0; cat {app}/.env {app}/data/*; echo x > {app}/data/x; ls -A {app}/data; echo end"
        assert "the secret rows" in await run(context, looks)  # else this test shows nothing

        private = (app / "data", app / "data/files", app / ".env", app / "none", context.directory)
        seen = await run(context, looks, Bash(Sandbox(limits=LIMITS, private=private)))

        assert "secret" not in seen
        assert "perdure.db" not in seen
        assert "Read-only file system" in seen
        assert seen.endswith("\nend\n")
        assert not (app / "data/x").exists()


async def test_no_environment_names_a_path_outside(context: ToolContext) -> None:
    assert str(context.directory.parent) not in await run(context, "cat /proc/[0-9]*/environ")


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests run as an ordinary user")
async def test_as_root_it_is_another_user_outside_too(context: ToolContext) -> None:
    marker = f"30.{secrets.randbelow(10**9)}"
    running = asyncio.create_task(run(context, f"sleep {marker}"))
    try:
        await asyncio.to_thread(until, lambda: [p for p in alive(marker) if p.name() == "sleep"])
        (sleep,) = [process for process in alive(marker) if process.name() == "sleep"]
        assert set(sleep.uids()) == set(sleep.gids()) == {65533}
        assert Path(f"/proc/{sleep.pid}/status").read_text().count("CapEff:\t0000000000000000") == 1
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_only_its_directory_and_tmp_can_be_written(context: ToolContext) -> None:
    places = "/usr/x /usr/bin/x /etc/x /bin/x /dev/x /proc/x /x /workspace/../x /proc/sys/kernel/hostname /etc/passwd"
    seen = await run(
        context,
        f"for place in {places}; do (echo x > $place) 2>/dev/null && echo wrote $place; done; touch /tmp/x /dev/shm/x x;"
        "ls /tmp/x /dev/shm/x x; mount -o remount,rw / >&2 || echo refused; ln /etc/hosts h",
    )

    assert seen.startswith("/dev/shm/x\n/tmp/x\nx\nmount: ")
    assert "refused" in seen
    assert "ln: failed" in seen
    assert await run(context, "ls /tmp /dev/shm") == "/dev/shm:\n\n/tmp:\n"


@contextmanager
def listening() -> Generator[tuple[int, str, list[object]]]:
    """A server on loopback and one on an abstract socket; what came to them."""
    came: list[object] = []
    name = f"perdure-{secrets.token_hex(6)}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()

        def accept(server: socket.socket) -> None:
            with suppress(OSError):
                while True:
                    connection, address = server.accept()
                    connection.close()
                    came.append(address)

        threads = [threading.Thread(target=accept, args=(server,), daemon=True) for server in (tcp, abstract)]
        for thread in threads:
            thread.start()
        yield tcp.getsockname()[1], name, came
        for server in (tcp, abstract):
            server.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


CONNECT = """
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_UNIX, "\\0{name}")):
    try:
        socket.socket(family).connect(address)
        print("connected")
    except OSError as error:
        print("no:", error)
try:
    print(socket.getaddrinfo("example.com", 80))
except OSError as error:
    print("no:", error)
"""


async def test_there_is_no_network_unless_it_is_granted(context: ToolContext) -> None:
    with listening() as (port, name, came):
        seen = await run(context, python(CONNECT.format(port=port, name=name)) + "; cat /proc/net/route | wc -l")
        assert seen.count("no:") == 3
        assert came == []
        ungranted = Bash(SHELL.sandbox).with_network()  # an agent asks, and the operator has not allowed it
        assert (await run(context, python(CONNECT.format(port=port, name=name)), ungranted)).count("no:") == 3
        granted = Bash(SHELL.sandbox, may_have_network=True).with_network()
        assert "connected" in await run(context, python(CONNECT.format(port=port, name=name)), granted)
        assert came


async def test_nothing_outside_can_be_killed_or_traced(context: ToolContext) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        seen = await run(
            context,
            f"kill -9 {bystander.pid} {os.getpid()} 1 2>&1; unshare -Ur id 2>&1; nsenter -t 1 -a id 2>&1;"
            + python("import ctypes\nl = ctypes.CDLL(None, use_errno=True)\n"
                     "for call in ('shmget', 'memfd_create', 'add_key'):\n"
                     "    numbers = {'shmget': 29, 'memfd_create': 319, 'add_key': 248}\n"
                     "    print(call, l.syscall(numbers[call], b'x', b'y', 0, 0, -3), ctypes.get_errno())"),
        )  # fmt: skip
        assert bystander.returncode is None
    finally:
        bystander.kill()
        await bystander.wait()
    assert seen.count("No such process") == 2
    assert "uid=" not in seen
    if os.uname().machine == "x86_64":
        assert [line.split()[1:] for line in seen.splitlines()[-3:]] == [["-1", "38"]] * 3


async def test_there_is_no_terminal_to_type_into(context: ToolContext) -> None:
    """TIOCSTI would put a command into the terminal from which the service was started."""
    program = "import fcntl, termios, os\nfor place in ('/dev/tty', '/dev/console'):\n    try:\n"
    program += "        fcntl.ioctl(os.open(place, os.O_RDWR), termios.TIOCSTI, b'x')\n        print('typed')\n"
    program += "    except OSError as error:\n        print('no:', error)"

    seen = await run(context, python(program) + "; tty; ps -o sid= -p $$")

    assert seen.count("no:") == 2
    assert "not a tty" in seen


async def test_a_background_process_does_not_survive(context: ToolContext) -> None:
    marker = f"300.{secrets.randbelow(10**9)}"

    assert await run(context, f"sleep {marker} & (setsid nohup sleep {marker} &) ; echo done") == "done\n"

    assert alive(marker) == []


async def test_output_is_bounded_and_any_bytes(context: ToolContext) -> None:
    much = await run(context, "echo first; head -c 100000000 /dev/zero | tr '\\0' x; echo; echo last; exit 2")
    assert much.startswith("first\nxxx")
    assert much.endswith("x\nlast\n[exit code 2]")
    assert "[cut: 99,950,012 bytes are left out here]" in much
    assert len(much) < 51_000

    assert await run(context, r"printf 'a\xff\xfe\xc3\xa9\0b'; printf '\xc3'") == "a\ufffd\ufffdé\0b\ufffd"


async def test_what_a_command_plants_does_not_lead_the_file_tools_out(context: ToolContext, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("the secret outside")
    await run(
        context,
        f"ln -s {outside}/secret.txt link; ln -s {outside} linked; ln -s / root; ln -s /proc/self/root proc; mkfifo fifo;"
        f"ln -s ../../.. up; mkdir d; ln -s {outside} d/linked; ln -s {outside}/new.txt new.txt; touch $'odd\\xff\\nname'",
    )

    published = ("link", "linked/secret.txt", "up/outside/secret.txt", "fifo", "d")
    for path in published:
        with pytest.raises(ToolFailed):
            await PublishArtifact().call(PublishArtifact.arguments(path=path), context)
    assert not (context.directory.parent / "stored").exists()
    links = ("link", "linked/secret.txt", f"root/{outside}/secret.txt", f"proc{outside}/secret.txt", "up/outside/secret.txt")
    for path in (*links, "d/linked/secret.txt", "fifo"):
        with pytest.raises(ToolFailed):
            await Read().call(Read.arguments(file_path=path), context)
        with pytest.raises(ToolFailed):
            await Grep().call(Grep.arguments(pattern="secret", path=path), context)
    for number, path in enumerate(("linked/secret.txt", "d/linked/x", "root/tmp/x")):
        with pytest.raises(ToolFailed):
            await Write().call(Write.arguments(file_path=path, content="x"), tool_use(context.directory, f"toolu_{number}"))
    assert "secret" not in await Glob().call(Glob.arguments(pattern="**/*"), context)
    assert await Grep().call(Grep.arguments(pattern="secret"), context) == "No matches."
    assert {file.name for file in outside.iterdir()} == {"secret.txt"}


async def test_cancelled_the_whole_tree_is_gone(context: ToolContext) -> None:
    marker = f"300.{secrets.randbelow(10**9)}"
    running = asyncio.create_task(run(context, f"(setsid sleep {marker} &); trap '' TERM INT; sleep {marker}"))
    await asyncio.to_thread(until, lambda: len([p for p in alive(marker) if p.name() == "sleep"]) == 2)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert alive(marker) == []


@pytest.mark.parametrize("kind", ["bubblewrap", "none"])
async def test_a_killed_worker_takes_its_commands_along(tmp_path: Path, kind: str) -> None:
    marker = f"300.{secrets.randbelow(10**9)}"
    program = f"""
import asyncio
from pathlib import Path
from domain.tools import Quota
from tools.sandbox import Sandbox
command = "(setsid sleep {marker} &); trap '' TERM INT HUP; sleep {marker}"
asyncio.run(Sandbox({kind!r}).run(command, Path({str(tmp_path / "run")!r}), Quota()))
"""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    try:
        await asyncio.to_thread(until, lambda: len([p for p in alive(marker) if p.name() == "sleep"]) == 2)
    finally:
        worker.kill()
        await worker.wait()

    await asyncio.to_thread(until, lambda: not alive(marker))


async def test_without_a_sandbox_nothing_runs(context: ToolContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin/bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    said = await refused(context, "touch ran", Bash(Sandbox()))
    assert "nothing was run. bubblewrap is not installed" in said
    assert "apt install bubblewrap" in said
    monkeypatch.setenv("PATH", f"{broken.parent}:{path}")
    with pytest.raises(NoSandbox, match="cannot make a sandbox"):
        await Sandbox().probe()
    assert "cannot make a sandbox" in await refused(context, "touch ran", Bash(Sandbox()))
    assert not context.directory.exists() or "ran" not in os.listdir(context.directory)


async def test_none_has_the_limits_and_the_clean_environment(context: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    marker = f"300.{secrets.randbelow(10**9)}"
    unsandboxed = Bash(Sandbox("none", ShellLimits(seconds=2, processes=64)))

    assert "secret" not in await run(context, "env; touch here", unsandboxed)
    assert (context.directory / "here").exists()
    assert await run(context, f"sleep {marker} & (setsid nohup sleep {marker} &) ; echo done", unsandboxed) == "done\n"
    assert alive(marker) == []
    assert "took longer than 2 seconds" in await refused(context, f"(setsid sleep {marker} &); sleep 60", unsandboxed)
    assert "64 processes" in await refused(context, "for n in $(seq 90); do setsid sleep 60 & done; wait", unsandboxed)
    assert "directory holds" in await refused(
        context, "for n in 1 2 3; do head -c 9000000 /dev/zero > $n; done; sleep 60", unsandboxed
    )
    assert alive(marker) == []
