"""Servers and clients that people run, unmodified, on the loop, with real peers on asyncio's own.

Each server is a process, as in production; it is asked for the counters of its loop and port.
``tests/guest/test_aio_clients.py`` runs the same on rings, with the peers beyond the NIC.

Libraries are imported where they are used: an emulated machine takes half a minute for them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stackmap import SocketPort
from stackmap.aio import EventLoop, loop_factory
from tests.reset import reset_on_close
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    import aiohttp
    import websockets
    from aiohttp import web

    NewLoop = Callable[[], asyncio.AbstractEventLoop]

#: Seconds; fifty contexts for TLS take an emulated guest that is busy 150.
PATIENCE = 400.0
BODY = random.Random(1).randbytes(1 << 20)
#: Larger than what TCP and servers buffer for a client that does not read.
BIG = 8 << 20
_forked = multiprocessing.get_context("fork")


class Place:
    """Where programs run, and where their peers do."""

    backend = "sockets"
    address = peer_address = "127.0.0.1"
    #: Connections at a time.
    connections = 200

    def environment(self) -> dict[str, str]:
        """For loops that nobody gives a port."""
        return {"STACKMAP_BACKEND": self.backend}

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """A loop with a port of its own."""
        return loop_factory(SocketPort)()

    @contextmanager
    def peers(self) -> Iterator[None]:
        """Sockets made and processes started inside are those of peers."""
        yield

    def check(self, counters: dict[str, Any], received: int, sent: int) -> None:
        """That many bytes, at least, went through the port, and no connection went by it."""
        assert counters["backend"] == self.backend
        assert counters["attached"] > 0
        assert counters["fallbacks"] == {}
        prefix, other = ("socket_", "") if self.backend == "sockets" else ("", "socket_")
        assert counters[f"{prefix}rx_bytes"] >= received
        assert counters[f"{prefix}tx_bytes"] >= sent
        assert counters[f"{other}rx_bytes"] == counters[f"{other}tx_bytes"] == 0


@pytest.fixture(scope="module")
def place() -> Place:
    return Place()


def count() -> dict[str, Any]:
    """The counters of the running loop and its port."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, EventLoop):
        return {}
    stats = loop.port.stats()
    names = ("rx_bytes", "tx_bytes", "socket_rx_bytes", "socket_tx_bytes")
    return {
        "backend": loop.port.backend,
        "attached": loop.stats.attached,
        "fallbacks": dict(loop.stats.fallbacks),
        **{name: getattr(stats, name) for name in names},
    }


# -- TLS --


class Certificate:
    """A certificate that signs itself, for the addresses of a place."""

    def __init__(self, folder: Path, *addresses: str) -> None:
        self.file, self.key = folder / "cert.pem", folder / "key.pem"
        names = ",".join(f"IP:{address}" for address in sorted(set(addresses)))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=stackmap", "-addext", f"subjectAltName={names}",
             "-keyout", str(self.key), "-out", str(self.file)],
            check=True, capture_output=True,
        )  # fmt: skip

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.file, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.file))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For files that daemons with users of their own read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def certificate(place: Place, folder: Path) -> Certificate:
    return Certificate(folder, place.address, place.peer_address)


@pytest.fixture(params=["plain", "TLS"])
def tls(request: pytest.FixtureRequest, certificate: Certificate) -> Certificate | None:
    return certificate if request.param == "TLS" else None


# -- servers --


class _Together:
    """Requests that are answered once so many of them have come."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def come(self, size: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if len(self._waiting) == size:
            for each in self._waiting:
                each.set_result(None)
            self._waiting = []
        await future


def asgi() -> Any:
    """An ASGI application."""
    together = _Together()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # as ASGI wants for "lifespan"
        path = scope["path"]
        pieces: list[bytes] = []
        if path == "/echo":
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                pieces.append(message["body"])
                more = message["more_body"]
        elif path == "/big":
            pieces = [BODY] * (BIG >> 20)
        elif path == "/count":
            pieces = [json.dumps(count()).encode()]
        else:
            await together.come(int(path[1:]))
        client = f"{scope['client'][1]}".encode()
        size = f"{sum(map(len, pieces))}".encode()
        headers = [(b"x-client", client), (b"content-length", size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def serve_uvicorn(sock: socket.socket, tls: Certificate | None, _new_loop: NewLoop) -> None:
    """As ``uvicorn --loop stackmap.aio:EventLoop --fd ...``."""
    import uvicorn

    files: dict[str, Any] = {}
    if tls:
        files = {"ssl_certfile": str(tls.file), "ssl_keyfile": str(tls.key)}
    uvicorn.run(
        asgi(), fd=sock.fileno(), loop="stackmap.aio:EventLoop", lifespan="off",
        log_level="warning", **files,
    )  # fmt: skip


def serve_aiohttp(sock: socket.socket, tls: Certificate | None, new_loop: NewLoop) -> None:
    """``web.run_app()`` in a loop of one's choice."""
    from aiohttp import web

    together = _Together()

    def answer(request: web.Request, body: bytes = b"") -> web.Response:
        assert request.transport
        client = request.transport.get_extra_info("peername")[1]
        return web.Response(body=body, headers={"x-client": f"{client}"})

    async def echo(request: web.Request) -> web.Response:
        return answer(request, await request.read())

    async def big(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = BIG
        await response.prepare(request)
        for _ in range(BIG >> 20):
            await response.write(BODY)
        return response

    async def counters(request: web.Request) -> web.Response:
        return answer(request, json.dumps(count()).encode())

    async def meet(request: web.Request) -> web.Response:
        await together.come(int(request.match_info["size"]))
        return answer(request)

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/echo", echo)
    app.router.add_get("/big", big)
    app.router.add_get("/count", counters)
    app.router.add_get("/{size}", meet)
    loop = new_loop()
    context = tls.server_context() if tls else None
    web.run_app(app, sock=sock, ssl_context=context, loop=loop, print=None, access_log=None)


def serve_websockets(sock: socket.socket, tls: Certificate | None, new_loop: NewLoop) -> None:
    """An echo server, as in the manual of websockets."""
    import websockets

    async def echo(websocket: websockets.ServerConnection) -> None:
        async for message in websocket:
            if message == "count":
                await websocket.send(json.dumps(count()))
            elif message == "big":
                for _ in range(BIG >> 20):
                    await websocket.send(BODY)
            else:
                await websocket.send(message)

    async def main() -> None:
        context = tls.server_context() if tls else None
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with websockets.serve(
            echo, sock=sock, ssl=context, max_size=2 << 20, compression=None,
            open_timeout=PATIENCE,
        ):  # fmt: skip
            await stop.wait()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


class Server:
    """A server that runs in a process of its own, which is forked: loading it takes long."""

    def __init__(self, sock: socket.socket) -> None:
        self.address, self.number = sock.getsockname()
        #: Its output, once it has ended.
        self.output = ""


@contextmanager
def serving(
    serve: Callable[[socket.socket, Certificate | None, NewLoop], None],
    tls: Certificate | None,
    address: str,
    environment: dict[str, str],
    new_loop: NewLoop,
) -> Iterator[Server]:
    """Run a server.  It ends on SIGTERM."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.create_server((address, 0), backlog=1024))
        output = stack.enter_context(tempfile.TemporaryFile("w+"))
        program = functools.partial(serve, sock, tls, new_loop)
        process = _forked.Process(target=_run, args=(program, environment, output.fileno()))
        process.start()
        stack.callback(process.join)
        stack.callback(process.kill)
        server = Server(sock)
        yield server
        assert process.pid
        os.kill(process.pid, signal.SIGTERM)
        process.join(PATIENCE)
        output.seek(0)
        server.output = output.read()
        assert process.exitcode in (0, -signal.SIGTERM)  # uvicorn passes its signal on


def _run(program: Callable[[], None], environment: dict[str, str], output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    # What the loop finds wrong; any loop warns, and servers complain, of clients that vanish.
    logging.basicConfig(level=logging.CRITICAL, stream=open(2, "w", closefd=False), force=True)  # noqa: SIM115
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    os.environ.update(environment)
    program()


@contextmanager
def serving_here(place: Place, serve: Any, tls: Certificate | None) -> Iterator[Server]:
    """A server on the loop under test, which has nothing to complain of."""
    with serving(serve, tls, place.address, place.environment(), place.new_loop) as server:
        yield server
    assert server.output == ""


@contextmanager
def serving_there(place: Place, serve: Any, tls: Certificate | None) -> Iterator[Server]:
    """A server on asyncio's own loop, among the peers.

    It may complain of one thing: Python 3.11's closes a connection twice if a reset comes while it
    is closing.
    """
    with place.peers():
        context = serving(serve, tls, place.peer_address, {}, asyncio.SelectorEventLoop)
        server = context.__enter__()
    with contextlib.ExitStack() as stack:
        stack.push(context.__exit__)
        yield server
    complaints = [line for line in server.output.splitlines() if line.startswith("ERROR:")]
    assert all("_call_connection_lost" in line for line in complaints), server.output
    assert complaints or not server.output, server.output


def run(new_loop: NewLoop, main: Coroutine[Any, Any, None]) -> None:
    """Run clients; nothing may go to the loop's handler of exceptions."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: complaints.append(context))
        async with asyncio.timeout(PATIENCE):
            await main

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(watched())
    assert complaints == []


# -- HTTP --


class Http:
    """An HTTP server, and the ways of its clients."""

    def __init__(self, server: Server, tls: Certificate | None) -> None:
        self.server = server
        self.context = tls.client_context() if tls else None
        self.url = f"http{'s' if tls else ''}://{server.address}:{server.number}"

    async def connect(self, receive_buffer: int) -> tuple[asyncio.StreamReader, Any]:
        """A client that is made of streams."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (self.server.address, self.server.number))
        name = self.server.address if self.context else None
        return await asyncio.open_connection(sock=sock, ssl=self.context, server_hostname=name)

    def session(self, limit: int = 100) -> aiohttp.ClientSession:
        """A client of up to ``limit`` connections at a time.

        By default aiohttp gives a connection 30 seconds, TLS included.  A slow machine needs more
        for hundreds that all come at once.
        """
        import aiohttp

        connector = aiohttp.TCPConnector(limit=limit, ssl=self.context or True)
        return aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=600, sock_connect=600)
        )

    async def is_well_used(self, connections: int) -> None:
        """Well-behaved clients, many at a time."""
        async with self.session(limit=1) as session:
            clients = set()
            for _ in range(3):
                async with session.post(f"{self.url}/echo", data=BODY) as response:
                    assert await response.read() == BODY
                    clients.add(response.headers["x-client"])
            assert len(clients) == 1  # the connection was kept

        async def come(session: aiohttp.ClientSession) -> str:
            async with session.get(f"{self.url}/{connections}") as response:
                assert response.status == 200
                return response.headers["x-client"]

        async with self.session(limit=connections) as session:
            for _ in range(2):
                found = await asyncio.gather(*(come(session) for _ in range(connections)))
                assert len(set(found)) == connections

    async def is_ill_used(self) -> None:
        """Clients that read slowly, and that vanish while they send or receive."""
        request = b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n"
        slow, slow_writer = await self.connect(16384)
        slow_writer.write(request)
        await slow.readuntil(b"\r\n\r\n")
        for _ in range(3):
            _reader, writer = await self.connect(16384)
            head = f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 20}\r\n\r\n"
            writer.write(head.encode() + BODY[: 1 << 19])
            await writer.drain()
            reset(writer)
            reader, writer = await self.connect(16384)
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(1 << 16) == BODY[: 1 << 16]
            reset(writer)
        for _ in range(BIG >> 20):
            assert await slow.readexactly(1 << 20) == BODY
        slow_writer.close()
        await slow_writer.wait_closed()

    async def counters(self) -> Any:
        async with self.session() as session, session.get(f"{self.url}/count") as response:
            return json.loads(await response.read())


def reset(writer: Any) -> None:
    """Vanish: the peer gets a reset."""
    reset_on_close(writer.get_extra_info("socket"))
    writer.transport.abort()


@pytest.mark.parametrize("serve", [serve_uvicorn, serve_aiohttp])
def test_http_server(place: Place, tls: Certificate | None, serve: Any) -> None:
    async def clients(http: Http) -> None:
        await http.is_well_used(place.connections)
        await http.is_ill_used()
        place.check(await http.counters(), received=3 << 20, sent=(3 << 20) + BIG)

    with serving_here(place, serve, tls) as server, place.peers():
        run(asyncio.SelectorEventLoop, clients(Http(server, tls)))


def test_aiohttp_client(place: Place, tls: Certificate | None) -> None:
    async def main(http: Http) -> None:
        await http.is_well_used(place.connections)
        async with http.session() as session:
            for taken in (1 << 16, BIG):
                async with session.get(f"{http.url}/big") as response:
                    digest = hashlib.sha256(await response.content.readexactly(taken))
                # What was not read is dropped with its connection.
            assert digest.digest() == hashlib.sha256(BODY * (BIG >> 20)).digest()
        place.check(count(), received=(3 << 20) + BIG, sent=3 << 20)

    with serving_there(place, serve_aiohttp, tls) as server:
        run(place.new_loop, main(Http(server, tls)))


def test_httpx_client(place: Place, tls: Certificate | None) -> None:
    import httpx

    async def main(http: Http) -> None:
        verify: Any = http.context or True
        # With 200, its pool compares each with each for longer than all others take together.
        many = min(place.connections, 50) if tls else place.connections
        async with httpx.AsyncClient(
            verify=verify, trust_env=False, timeout=PATIENCE, base_url=http.url,
            limits=httpx.Limits(max_connections=many, max_keepalive_connections=many),
        ) as client:  # fmt: skip
            used = set()
            for _ in range(3):
                response = await client.post("/echo", content=BODY)
                assert response.content == BODY
                used.add(response.headers["x-client"])
            assert len(used) == 1
            found = await asyncio.gather(*(client.get(f"/{many}") for _ in range(many)))
            assert len({each.headers["x-client"] for each in found}) == many
            async with client.stream("GET", "/big") as response:
                async for piece in response.aiter_raw():
                    assert piece == BODY[: len(piece)]
                    break
            assert (await client.get("/big")).content == BODY * (BIG >> 20)
        place.check(count(), received=(3 << 20) + BIG, sent=3 << 20)

    with serving_there(place, serve_aiohttp, tls) as server:
        run(place.new_loop, main(Http(server, tls)))


# -- WebSocket --


async def use_websockets(server: Server, tls: Certificate | None, connections: int) -> Any:
    """Use an echo server well and badly, and return its counters."""
    import websockets

    url = f"ws{'s' if tls else ''}://{server.address}:{server.number}"
    connect = functools.partial(
        websockets.connect, url, ssl=tls.client_context() if tls else None, max_size=2 << 20,
        proxy=None, open_timeout=PATIENCE, compression=None,
    )  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        clients = await asyncio.gather(
            *(stack.enter_async_context(connect()) for _ in range(connections))
        )
        await asyncio.gather(*(each.send(f"{n}") for n, each in enumerate(clients)))
        heard = await asyncio.gather(*(each.recv() for each in clients))
        assert heard == [f"{n}" for n in range(connections)]
    async with connect() as slow, connect() as client:
        await slow.send("big")
        for _ in range(3):
            await client.send(BODY)
            assert await client.recv() == BODY
        for _ in range(3):
            gone = await connect()
            await gone.send("big")
            await gone.recv()
            reset_on_close(gone.transport.get_extra_info("socket"))
            gone.transport.abort()
            await gone.wait_closed()
        for _ in range(BIG >> 20):
            assert await slow.recv() == BODY
        await client.send("count")
        return json.loads(await client.recv())


def test_websockets_server(place: Place, tls: Certificate | None) -> None:
    async def clients(server: Server) -> None:
        counters = await use_websockets(server, tls, place.connections)
        place.check(counters, received=3 << 20, sent=(3 << 20) + BIG)

    with serving_here(place, serve_websockets, tls) as server, place.peers():
        run(asyncio.SelectorEventLoop, clients(server))


def test_websockets_client(place: Place, tls: Certificate | None) -> None:
    async def main(server: Server) -> None:
        await use_websockets(server, tls, place.connections)
        place.check(count(), received=(3 << 20) + BIG, sent=3 << 20)

    with serving_there(place, serve_websockets, tls) as server:
        run(place.new_loop, main(server))


# -- Debian's daemons --


@contextmanager
def daemon(
    place: Place,
    *command: str | Path,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """Run a daemon among the peers."""
    with tempfile.TemporaryFile("w+") as log:
        with place.peers():
            process = subprocess.Popen(
                command, stdout=log, stderr=log, user=user, cwd="/", start_new_session=True
            )
        try:
            yield
        except BaseException as error:
            log.seek(0)
            error.add_note(f"{command[0]} said:\n{log.read()[-4000:]}")
            raise
        finally:
            process.send_signal(stop)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_number(place: Place) -> int:
    """A port number that no peer uses."""
    with place.peers(), socket.create_server((place.peer_address, 0)) as sock:
        number: int = sock.getsockname()[1]
        return number


def answers(place: Place, number: int) -> bool:
    """Somebody listens there."""
    try:
        with place.peers():
            socket.create_connection((place.peer_address, number)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_redis_client(place: Place, tls: Certificate | None, folder: Path) -> None:
    import redis.asyncio
    import redis.exceptions
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    if not shutil.which("redis-server"):
        pytest.skip("there is no redis-server here: testbed/setup.sh test-packages")
    number = free_number(place)
    ports = ["--port", f"{number}"]
    options: dict[str, Any] = {}
    if tls:
        ports = ["--port", "0", "--tls-port", f"{number}", "--tls-cert-file", str(tls.file),
                 "--tls-key-file", str(tls.key), "--tls-auth-clients", "no"]  # fmt: skip
        options = {"ssl": True, "ssl_ca_certs": str(tls.file)}

    async def main() -> None:
        # Each makes a context of its own for TLS, which takes longer than all else together.
        many = min(place.connections, 50) if tls else place.connections
        # Its types are those of the blocking client, too.
        made: Any = redis.asyncio.Redis(
            host=place.peer_address, port=number, max_connections=2 * many,
            socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 0), **options
        )  # fmt: skip
        async with made as client:
            first = await client.client_id()
            for _ in range(3):
                await client.set("body", BODY)
                assert await client.get("body") == BODY
            assert await client.client_id() == first  # the connection was kept
            waiting = [asyncio.create_task(client.blpop(["queue"])) for _ in range(many)]
            async with client.pipeline(transaction=False) as pipe:
                for n in range(many):
                    pipe.rpush("queue", n)
                await pipe.execute()
            found = await asyncio.gather(*waiting)
            assert sorted(int(each[1]) for each in found) == list(range(many))
            async with client.pipeline() as pipe:  # it reads nothing while it writes
                for _ in range(8):
                    pipe.set("body", BODY).get("body")
                assert (await pipe.execute())[1::2] == [BODY] * 8
            for turns in range(4):
                task = asyncio.create_task(client.get("body"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                assert await client.get("body") == BODY
            async with client.client() as victim:
                number_of_victim = await victim.client_id()
                task = asyncio.create_task(victim.execute_command("BLPOP", "nothing", 0))
                while not any(each["cmd"] == "blpop" for each in await client.client_list()):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await client.client_kill_filter(_id=f"{number_of_victim}")
                with pytest.raises(redis.exceptions.ConnectionError):
                    await task
            assert await client.get("body") == BODY
        place.check(count(), received=11 << 20, sent=11 << 20)

    with daemon(
        place, "redis-server", "--bind", place.peer_address, "--save", "", "--appendonly", "no",
        "--dir", str(folder), "--maxclients", "1000",
        "--protected-mode", "no", *ports,
    ):  # fmt: skip
        eventually(lambda: answers(place, number), lambda: "Redis never listened")
        run(place.new_loop, main())


@pytest.fixture(scope="module")
def cluster(folder: Path) -> tuple[Path, Path]:
    """PostgreSQL's programs, and an empty database of the user whom it runs as."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None:
        pytest.skip("there is no PostgreSQL server here: testbed/setup.sh test-packages")
    data = folder / "postgresql"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    subprocess.run(
        [programs / "initdb", "--no-sync", "--no-instructions", "--auth", "trust", "--no-locale",
         "--encoding", "UTF8", data],
        check=True, capture_output=True, user="postgres", group="postgres", cwd="/",
    )  # fmt: skip
    (data / "pg_hba.conf").write_text("host all all all trust\n")
    return programs, data


#: asyncpg's connections at a time: each is a process of PostgreSQL's.
SESSIONS = 20
#: Rows of 1 KiB that are copied each way, and one of them.
ROWS, ROW = 8192, b"x" * 1023 + b"\n"


async def use_postgresql(options: dict[str, Any]) -> None:
    """Queries, bulk data, sessions that are cancelled and that end while they work."""
    import asyncpg

    async with asyncpg.create_pool(min_size=0, max_size=SESSIONS, **options) as pool:
        sessions = await asyncio.gather(*(pool.acquire() for _ in range(SESSIONS)))
        assert len({each.get_server_pid() for each in sessions}) == SESSIONS
        query = "SELECT pg_backend_pid() FROM pg_sleep(0)"
        found = await asyncio.gather(*(each.fetchval(query) for each in sessions))
        assert found == [each.get_server_pid() for each in sessions]
        for each in sessions:
            await pool.release(each)
        async with pool.acquire() as session, pool.acquire() as witness:
            for _ in range(3):
                assert await session.fetchval("SELECT $1::bytea", BODY) == BODY
            await copy_rows(session)
            await cancel_query(session, witness)
            await end_session(session, witness)


async def copy_rows(session: Any) -> None:
    """COPY in, and out to a slow reader and to one that fails."""

    async def rows() -> AsyncIterator[bytes]:
        for _ in range(ROWS // 64):
            yield ROW * 64

    async def take(piece: bytes) -> None:
        digest.update(piece)
        await asyncio.sleep(0)

    async def fail(_piece: bytes) -> None:
        raise ZeroDivisionError

    await session.execute("CREATE TEMPORARY TABLE copied (line text)")
    assert await session.copy_to_table("copied", source=rows()) == f"COPY {ROWS}"
    digest = hashlib.sha256()
    assert await session.copy_from_table("copied", output=take) == f"COPY {ROWS}"
    assert digest.digest() == hashlib.sha256(ROW * ROWS).digest()
    with pytest.raises(ZeroDivisionError):
        await session.copy_from_table("copied", output=fail)
    assert await session.fetchval("SELECT count(*) FROM copied") == ROWS


async def cancel_query(session: Any, witness: Any) -> None:
    """asyncpg opens a connection for that; the session can be used afterwards."""
    task = asyncio.create_task(session.execute("SELECT pg_sleep(1000)"))
    await sleeps(witness, session.get_server_pid())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await session.fetchval("SELECT $1::bytea", BODY) == BODY


async def end_session(session: Any, witness: Any) -> None:
    """The server ends it in mid-query."""
    import asyncpg

    task = asyncio.create_task(session.execute("SELECT pg_sleep(1000)"))
    await sleeps(witness, session.get_server_pid())
    await witness.execute("SELECT pg_terminate_backend($1)", session.get_server_pid())
    with pytest.raises((asyncpg.PostgresError, ConnectionError)):
        await task


async def sleeps(witness: Any, pid: int) -> None:
    """Wait until that session is in pg_sleep()."""
    query = "SELECT wait_event FROM pg_stat_activity WHERE pid = $1"
    while await witness.fetchval(query, pid) != "PgSleep":  # noqa: ASYNC110 (of another process)
        await asyncio.sleep(0)


def test_asyncpg_client(
    place: Place, tls: Certificate | None, folder: Path, cluster: tuple[Path, Path]
) -> None:
    programs, data = cluster
    number = free_number(place)
    settings: dict[str, Any] = {
        "listen_addresses": place.peer_address, "port": number, "unix_socket_directories": "",
        "max_connections": SESSIONS + 10, "fsync": "off", "shared_buffers": "16MB", "ssl": "off",
    }  # fmt: skip
    if tls:
        key = folder / "postgresql.pem"  # it must be the daemon's own
        shutil.copy(tls.key, key)
        shutil.chown(key, "postgres", "postgres")
        key.chmod(0o600)
        settings |= {"ssl": "on", "ssl_cert_file": tls.file, "ssl_key_file": key}

    async def main() -> None:
        await use_postgresql({
            "host": place.peer_address, "port": number, "user": "postgres",
            "database": "postgres", "ssl": tls.client_context() if tls else False,
            "timeout": PATIENCE,
        })  # fmt: skip
        place.check(count(), received=(4 << 20) + ROWS * len(ROW), sent=(4 << 20) + ROWS * len(ROW))

    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with daemon(
        place, programs / "postgres", "-D", data, *options, user="postgres",
        stop=signal.SIGQUIT,  # SIGTERM would wait for clients
    ):  # fmt: skip
        ready: list[str | Path] = [
            programs / "pg_isready", "-q", "-U", "postgres", "-h", place.peer_address,
            "-p", f"{number}",
        ]  # fmt: skip

        def is_ready() -> bool:
            with place.peers():
                return subprocess.run(ready, check=False).returncode == 0

        eventually(is_ready, lambda: "PostgreSQL never took connections")
        run(place.new_loop, main())
