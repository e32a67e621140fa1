"""An origin of the package websockets. Prints its port; tells of a connection's end to whoever asks for /ends."""

import asyncio
import json

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

ENDS = {}


async def handle(connection):
    path = connection.request.path
    if path == "/ends":
        await connection.send(json.dumps(ENDS))
        return
    if path.startswith("/close/"):
        await connection.close(int(path.rsplit("/", 1)[1]), "the origin's reason é")
        return
    if path == "/about":
        request = connection.request.headers
        about = {
            "extensions": [extension.name for extension in connection.protocol.extensions],
            "subprotocol": connection.subprotocol,
            "host": request["Host"],
            "forwarded": request.get("X-Forwarded-Proto"),
        }
        await connection.send(json.dumps(about))
    try:
        while True:
            await connection.send(await connection.recv())
    except ConnectionClosed:
        pass
    ENDS[path] = [connection.close_code, connection.close_reason]


def subprotocol(connection, offered):
    return "chat.v2" if "chat.v2" in offered else None


async def main():
    async with serve(handle, "127.0.0.1", 0, max_size=4 * 1024 * 1024, select_subprotocol=subprotocol) as server:
        print(f"port {server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


asyncio.run(main())
