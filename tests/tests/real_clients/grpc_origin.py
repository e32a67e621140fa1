"""An origin of the package grpcio. Prints its ports, with and without TLS.

Arguments: PEM files with its certificate and key. Messages are plain bytes: gRPC does not care what is in them.
"""

import asyncio
import sys

import grpc

CANCELLED = []
# More than gRPC's own bound of 4 MiB.
MESSAGE_BYTES_MAX = 32 * 1024 * 1024


async def echo(message, context):
    await context.send_initial_metadata([(k, v) for k, v in context.invocation_metadata() if k.startswith("x-")])
    context.set_trailing_metadata([("x-trailing", "é".encode().hex()), ("x-trailing-bin", b"\x00\xff")])
    return message


async def repeat(message, context):
    """The message as often as it says, a line each."""
    for at in range(int(message)):
        yield str(at).encode()


async def total(messages, context):
    count = size = 0
    async for message in messages:
        count, size = count + 1, size + len(message)
    return f"{count} {size}".encode()


async def talk(messages, context):
    async for message in messages:
        yield b"re: " + message


async def fail(message, context):
    code, details = message.decode().split(" ", 1)
    context.set_trailing_metadata([("grpc-status-details-bin", b"\x08\x05\x00")])
    await context.abort(grpc.StatusCode[code], details)


async def fail_late(message, context):
    yield b"first"
    await context.abort(grpc.StatusCode.DATA_LOSS, "after the first")


def note_when_cancelled(message, context):
    """These calls end no other way. The call may be at its first message still."""
    context.add_done_callback(lambda _: CANCELLED.append(message))


async def wait(message, context):
    """Until it is cancelled."""
    note_when_cancelled(message, context)
    await asyncio.sleep(600)


async def wait_in_stream(message, context):
    note_when_cancelled(message, context)
    yield str(context.time_remaining()).encode()
    await asyncio.sleep(600)


async def cancelled(message, context):
    return b"yes" if message in CANCELLED else b"no"


HANDLERS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Repeat": grpc.unary_stream_rpc_method_handler(repeat),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "WaitInStream": grpc.unary_stream_rpc_method_handler(wait_in_stream),
    "Cancelled": grpc.unary_unary_rpc_method_handler(cancelled),
}


async def main():
    certificate, key = (open(path, "rb").read() for path in sys.argv[1:3])
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Peer", HANDLERS)])
    plain = server.add_insecure_port("127.0.0.1:0")
    tls = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    print(f"ports {plain} {tls}", flush=True)
    await server.wait_for_termination()


asyncio.run(main())
