"""A component of wasi:http 0.2 in Python, without anything of Hob: the same file runs under `wasmtime serve`.

`./build` makes it, with componentize-py from PyPI: CPython and this file in one component of 18 MB.

    hob deploy                                              # in this folder; runs ./build first
    curl 'http://127.0.0.1:3000/python-hello/?name=Ana'     # Hello, Ana!
    wasmtime serve ../target/python-hello/hello.wasm

The warm-up request in hob.toml runs at deploy, so that no invocation pays for what CPython does once. It must not print: a
component that holds a handle of the host when its warm-up ends, as CPython does of standard output once it has printed, cannot
be snapshotted. What this file does when it is imported runs even earlier, when componentize-py builds. `random` has a seed by
then, the same in every instance: a function that draws from it calls `random.seed()` first; `secrets` asks the host each time.
"""

from urllib.parse import parse_qs, urlsplit

from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        query = parse_qs(urlsplit(request.path_with_query() or "").query)
        name = query.get("name", ["world"])[0]
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain; charset=utf-8")]))
        body = response.body()
        # The head goes first: a host may wait for it before it takes any of the body.
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as stream:
            stream.blocking_write_and_flush(f"Hello, {name}!\n".encode())
        OutgoingBody.finish(body, None)
