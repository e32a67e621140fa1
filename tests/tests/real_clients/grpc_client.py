"""grpcio's client before the edge, behind which its server stands.

Arguments: address, port, host that is served, file with the CA's certificates.
"""

import asyncio
import sys

import grpc

import checks

ADDRESS, PORT, HOST, CA_FILE = sys.argv[1:5]
LARGE_BYTES = 16 * 1024 * 1024
AT_ONCE = 200
SERVICE = "/test.Peer/"


def channel(**options):
    credentials = grpc.ssl_channel_credentials(open(CA_FILE, "rb").read())
    options = {
        "grpc.ssl_target_name_override": HOST,
        "grpc.max_receive_message_length": LARGE_BYTES * 2,
        # A connection of its own, not one that an earlier check left.
        "grpc.use_local_subchannel_pool": 1,
        **options,
    }
    return grpc.aio.secure_channel(f"{ADDRESS}:{PORT}", credentials, options=list(options.items()))


async def fails_with(call, code, details=None):
    try:
        await call
        raise AssertionError("the call did not fail")
    except grpc.aio.AioRpcError as error:
        assert error.code() == code, error
        assert details is None or error.details() == details, error
        return error


async def unary_calls_with_metadata_both_ways():
    async with channel() as peer:
        call = peer.unary_unary(SERVICE + "Echo")(b"hello", metadata=[("x-text", "a b"), ("x-bytes-bin", bytes(range(256)))])
        assert await call == b"hello"
        initial = dict(await call.initial_metadata())
        assert (initial["x-text"], initial["x-bytes-bin"]) == ("a b", bytes(range(256))), initial
        trailing = dict(await call.trailing_metadata())
        assert (trailing["x-trailing"], trailing["x-trailing-bin"]) == ("c3a9", b"\x00\xff"), trailing
        assert await call.code() == grpc.StatusCode.OK


async def streams_of_each_kind():
    async with channel() as peer:
        got = [message async for message in peer.unary_stream(SERVICE + "Repeat")(b"2000")]
        assert got == [str(at).encode() for at in range(2000)]
        assert await peer.stream_unary(SERVICE + "Total")(iter([b"x" * 1000] * 2000)) == b"2000 2000000"
        talk = peer.stream_stream(SERVICE + "Talk")()
        # One at a time: each answer comes while the request is still open.
        for at in range(100):
            await talk.write(str(at).encode())
            assert await talk.read() == b"re: %d" % at
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
        assert await talk.code() == grpc.StatusCode.OK


async def messages_of_no_byte_and_of_many():
    async with channel() as peer:
        echo = peer.unary_unary(SERVICE + "Echo")
        for message in (b"", bytes(range(256)) * (LARGE_BYTES // 256)):
            assert await echo(message) == message
        words = b"compressed on its way, " * 100_000
        assert await echo(words, compression=grpc.Compression.Gzip) == words


async def each_status_comes_as_the_origin_gave_it():
    async with channel() as peer:
        fail = peer.unary_unary(SERVICE + "Fail")
        for code in grpc.StatusCode:
            if code != grpc.StatusCode.OK:
                details = f"100 % of {code.name} é\nin two lines"
                error = await fails_with(fail(f"{code.name} {details}".encode()), code, details)
                assert dict(error.trailing_metadata())["grpc-status-details-bin"] == b"\x08\x05\x00"
        stream = peer.unary_stream(SERVICE + "FailLate")(b"")
        assert await stream.read() == b"first"
        await fails_with(stream.read(), grpc.StatusCode.DATA_LOSS, "after the first")
        await fails_with(peer.unary_unary(SERVICE + "Nothing")(b""), grpc.StatusCode.UNIMPLEMENTED)


async def what_the_edge_refuses_is_a_status_too():
    async with channel() as peer:
        # A path without a route.
        await fails_with(peer.unary_unary("/other.Service/Call")(b""), grpc.StatusCode.UNIMPLEMENTED)
        # A route to an origin that is not there.
        await fails_with(peer.unary_unary("/test.Away/Call")(b""), grpc.StatusCode.UNAVAILABLE)


async def seen_by_origin(peer, name):
    seen = peer.unary_unary(SERVICE + "Cancelled")
    while await seen(name) != b"yes":
        await asyncio.sleep(0.02)


async def a_deadline_ends_the_call_on_both_sides():
    async with channel() as peer:
        call = peer.unary_unary(SERVICE + "Wait")(b"deadline", timeout=0.3)
        await fails_with(call, grpc.StatusCode.DEADLINE_EXCEEDED)
        await seen_by_origin(peer, b"deadline")
        # The origin knows it beforehand, by grpc-timeout.
        stream = peer.unary_stream(SERVICE + "WaitInStream")(b"told", timeout=500)
        left = float(await stream.read())
        # Rounded on the way.
        assert 400 < left < 510, left
        stream.cancel()
        await seen_by_origin(peer, b"told")


async def a_cancelled_call_is_cancelled_at_the_origin():
    async with channel() as peer:
        stream = peer.unary_stream(SERVICE + "WaitInStream")(b"cancel")
        await stream.read()
        # Calls beside it, on the same connection, go on.
        talk = peer.stream_stream(SERVICE + "Talk")()
        await talk.write(b"before")
        assert await talk.read() == b"re: before"
        stream.cancel()
        await seen_by_origin(peer, b"cancel")
        await talk.write(b"after")
        assert await talk.read() == b"re: after"
        await talk.done_writing()


async def a_client_that_is_gone_cancels_its_calls():
    async with channel() as peer:
        async with channel() as gone:
            stream = gone.unary_stream(SERVICE + "WaitInStream")(b"gone")
            await stream.read()
        await seen_by_origin(peer, b"gone")


async def many_calls_at_once_on_one_connection():
    async with channel() as peer:
        echo = peer.unary_unary(SERVICE + "Echo")
        calls = [echo(str(at).encode() * 100) for at in range(AT_ONCE)]
        for at, call in enumerate(calls):
            assert await call == str(at).encode() * 100


checks.run(
    [
        unary_calls_with_metadata_both_ways,
        streams_of_each_kind,
        messages_of_no_byte_and_of_many,
        each_status_comes_as_the_origin_gave_it,
        what_the_edge_refuses_is_a_status_too,
        a_deadline_ends_the_call_on_both_sides,
        a_cancelled_call_is_cancelled_at_the_origin,
        a_client_that_is_gone_cancels_its_calls,
        many_calls_at_once_on_one_connection,
    ]
)
