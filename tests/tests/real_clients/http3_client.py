"""aioquic's HTTP/3 client before the edge.

Arguments: address, port, host that is served, file with the CA's certificates, and "early" for a host that takes early data.
"""

import asyncio
import socket
import ssl
import sys

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    ProtocolNegotiated,
    StreamReset,
)
from aioquic.quic.packet import QuicProtocolVersion, pull_quic_header
from aioquic.tls import Epoch

import checks

ADDRESS, PORT, HOST, CA_FILE = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
LARGE_BYTES = 2 * 1024 * 1024
# A hundred open handshakes of a worker make it ask (edge/src/limits.rs); there are two.
HALF_OPEN = 50


class Answer:
    def __init__(self):
        self.done = asyncio.get_running_loop().create_future()
        self.headers, self.trailers, self.body = {}, {}, bytearray()

    @property
    def status(self):
        return int(self.headers[":status"])


class Http(H3Connection):
    """aioquic 1.7 holds an answer to HEAD to its content-length, which RFC 9114 section 4.1.2 excepts."""

    def __init__(self, quic):
        super().__init__(quic)
        self.heads = set()

    def _check_content_length(self, stream):
        if stream.stream_id in self.heads:
            assert stream.content_length == 0, "an answer to HEAD has a body"
        else:
            super()._check_content_length(stream)


class Client(QuicConnectionProtocol):
    """One connection; it may change its socket."""

    def __init__(self, quic):
        super().__init__(quic)
        self.http, self.answers, self.handshake, self.terminated = None, {}, None, None

    def quic_event_received(self, event):
        if isinstance(event, ProtocolNegotiated):
            self.http = self.http or Http(self._quic)
        elif isinstance(event, HandshakeCompleted):
            self.handshake = event
        elif isinstance(event, ConnectionTerminated):
            self.terminated = event
            for answer in self.answers.values():
                if not answer.done.done():
                    answer.done.set_exception(ConnectionError(str(event)))
        elif isinstance(event, StreamReset) and event.stream_id in self.answers:
            answer = self.answers[event.stream_id]
            if not answer.done.done():
                answer.done.set_exception(ConnectionResetError(hex(event.error_code)))
        for event in self.http.handle_event(event) if self.http else []:
            self.http_event(event)

    def http_event(self, event):
        answer = self.answers.get(getattr(event, "stream_id", None))
        if answer is None:
            return
        if isinstance(event, HeadersReceived):
            fields = {name.decode(): value.decode() for name, value in event.headers}
            if answer.headers:
                answer.trailers = fields
            else:
                answer.headers = fields
        elif isinstance(event, DataReceived):
            answer.body += event.data
        if event.stream_ended and not answer.done.done():
            answer.done.set_result(answer)

    def begin(self, method, path, fields=(), body=None, trailers=None, pseudo=()):
        stream = self._quic.get_next_available_stream_id()
        answer = self.answers[stream] = Answer()
        head = [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path), *pseudo, *fields]
        if method == "HEAD":
            self.http.heads.add(stream)
        encoded = [(name.encode(), value.encode()) for name, value in head]
        self.http.send_headers(stream, encoded, end_stream=body is None and trailers is None)
        if body is not None:
            self.http.send_data(stream, body, end_stream=trailers is None)
        if trailers is not None:
            self.http.send_headers(stream, [(n.encode(), v.encode()) for n, v in trailers], end_stream=True)
        self.transmit()
        return answer

    async def ask(self, *args, **kwargs):
        return await self.begin(*args, **kwargs).done

    async def move(self):
        """From now on datagrams leave from a new port, as when a NAT forgets us."""
        loop = asyncio.get_running_loop()
        old = self._transport
        relay = type("Relay", (asyncio.DatagramProtocol,), {})()
        relay.datagram_received = self.datagram_received
        self._transport, _ = await loop.create_datagram_endpoint(lambda: relay, local_addr=("127.0.0.1", 0))
        before, now = (t.get_extra_info("sockname")[1] for t in (old, self._transport))
        assert before != now
        old.close()


def configuration(**kwargs):
    made = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=HOST, **kwargs)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(CA_FILE)
    return made


async def connect(made=None, **kwargs):
    loop = asyncio.get_running_loop()
    quic = QuicConnection(configuration=made or configuration(), **kwargs)
    _, client = await loop.create_datagram_endpoint(lambda: Client(quic), local_addr=("127.0.0.1", 0))
    client.connect((ADDRESS, PORT))
    await client.wait_connected()
    return client


async def connect_early(ticket, *request, **kwargs):
    """Sends a request with the first packets, before the server has said anything."""
    loop = asyncio.get_running_loop()
    quic = QuicConnection(configuration=configuration(session_ticket=ticket))
    _, client = await loop.create_datagram_endpoint(lambda: Client(quic), local_addr=("127.0.0.1", 0))
    client.http = Http(quic)
    client.connect((ADDRESS, PORT))
    answer = client.begin(*request, **kwargs)
    assert client.handshake is None
    await client.wait_connected()
    return client, answer


async def ticket_for_early_data():
    tickets = []
    client = await connect(session_ticket_handler=tickets.append)
    assert (await client.ask("GET", "/echo")).status == 200
    await checks.until("a session ticket", lambda: tickets)
    await end(client)
    # RFC 9001 section 4.6.1: the only value that there is.
    assert tickets[0].max_early_data_size == 0xFFFFFFFF, tickets[0]
    return tickets[0]


async def end(client):
    client.close()
    client._transport.close()


def pattern(count):
    """What the origin of the test sends: bytes that count to 250 again and again."""
    return (bytes(range(251)) * (count // 251 + 1))[:count]


async def get_head_and_post():
    client = await connect()
    answer = await client.ask("GET", "/echo?x=1")
    assert (answer.status, bytes(answer.body)) == (200, b""), answer.headers
    assert answer.headers["x-request"] == "GET /echo?x=1"
    answer = await client.ask("HEAD", "/large?bytes=1000")
    assert (answer.status, answer.headers["content-length"], len(answer.body)) == (200, "1000", 0)
    answer = await client.ask("POST", "/echo", [("content-type", "text/plain")], b"a body")
    assert (answer.status, bytes(answer.body)) == (200, b"a body")
    answer = await client.ask("GET", "/nowhere")
    assert answer.status == 404
    await end(client)


async def large_bodies_both_ways():
    client = await connect()
    sent = pattern(LARGE_BYTES)
    down, up = client.begin("GET", f"/large?bytes={LARGE_BYTES}"), client.begin("POST", "/echo", (), sent)
    assert bytes((await down.done).body) == sent
    assert bytes((await up.done).body) == sent
    await end(client)


async def trailers_both_ways():
    client = await connect()
    fields = [("te", "trailers"), ("trailer", "x-sum")]
    answer = await client.ask("POST", "/echo", fields, b"counted", [("x-sum", "7")])
    assert bytes(answer.body) == b"counted"
    assert answer.trailers == {"x-sum": "7"}, answer.trailers
    await end(client)


async def many_requests_at_once():
    client = await connect()
    answers = [client.begin("GET", f"/echo?n={n}") for n in range(90)]
    for n, answer in enumerate(answers):
        assert (await answer.done).headers["x-request"] == f"GET /echo?n={n}"
    await end(client)


async def clients_whose_port_changes_stay_with_their_worker():
    # A port chosen anew for each of many: without steering about half of them would reach a worker that knows no keys.
    clients = [await connect() for _ in range(8)]
    answers = [client.begin("GET", f"/large?bytes={LARGE_BYTES}") for client in clients]
    await checks.until("all downloads have begun", lambda: all(len(a.body) > 50_000 for a in answers))
    for at, client in enumerate(clients):
        assert not answers[at].done.done(), "the download ended before the port changed"
        if at % 2:
            # A deliberate move takes a new connection id (RFC 9000 section 9.5); a NAT that forgets cannot.
            client.change_connection_id()
        await client.move()
        client.transmit()
        client._quic.send_ping(at)
        client.transmit()
    for answer in answers:
        assert bytes((await answer.done).body) == pattern(LARGE_BYTES)
    for client in clients:
        await client.move()
        assert (await client.ask("GET", "/echo")).status == 200
        await end(client)


async def keys_are_updated():
    client = await connect()
    for update in range(1, 4):
        client.request_key_update()
        assert (await client.ask("GET", "/echo")).status == 200
        # RFC 9001 section 6.2: the edge answers with its own new keys.
        crypto = client._quic._cryptos[Epoch.ONE_RTT]
        assert (crypto.send.key_phase, crypto.recv.key_phase) == (update % 2, update % 2)
        # Section 6.5: not again before the first update is acknowledged.
        await client.ping()
    await end(client)


async def another_version_is_negotiated():
    made = configuration()
    made.supported_versions = [QuicProtocolVersion.VERSION_2, QuicProtocolVersion.VERSION_1]
    made.original_version = QuicProtocolVersion.VERSION_2
    client = await connect(made)
    assert client._quic._version == QuicProtocolVersion.VERSION_1
    assert client._quic._version_negotiated_incompatible, "there was no Version Negotiation packet"
    assert (await client.ask("GET", "/echo")).status == 200
    await end(client)


async def an_unknown_version_is_told_what_there_is():
    # RFC 9000 section 6.1 and 15: a version that is reserved to force this.
    packet = bytes([0xC0, 0x1A, 0x2A, 0x3A, 0x4A, 8]) + b"12345678" + bytes([4]) + b"abcd" + bytes(1200)
    loop = asyncio.get_running_loop()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    await loop.sock_sendto(udp, packet, (ADDRESS, PORT))
    header = pull_quic_header(Buffer(data=await loop.sock_recv(udp, 2000)), host_cid_length=4)
    assert (header.version, header.destination_cid, header.source_cid) == (0, b"abcd", b"12345678"), header
    assert QuicProtocolVersion.VERSION_1 in header.supported_versions
    udp.close()


async def a_session_is_resumed_without_early_data():
    tickets = []
    first = await connect(session_ticket_handler=tickets.append)
    assert not first.handshake.session_resumed
    await checks.until("a session ticket", lambda: tickets)
    await end(first)
    # RFC 9001 section 4.6.1: early data can be replayed, and is not offered.
    assert tickets[0].max_early_data_size is None
    again = await connect(configuration(session_ticket=tickets[0]))
    assert again.handshake.session_resumed and not again.handshake.early_data_accepted
    assert (await again.ask("GET", "/echo")).status == 200
    await end(again)


async def a_safe_request_is_served_as_early_data():
    client, answer = await connect_early(await ticket_for_early_data(), "GET", "/echo?early")
    answer = await answer.done
    assert client.handshake.session_resumed and client.handshake.early_data_accepted
    # RFC 8470 section 5.1: the origin is told.
    assert (answer.status, answer.headers.get("x-early-data")) == (200, "1"), answer.headers
    later = await client.ask("GET", "/echo?later")
    assert (later.status, later.headers.get("x-early-data")) == (200, None), later.headers
    await end(client)


async def an_unsafe_request_waits_for_the_handshake():
    client, answer = await connect_early(await ticket_for_early_data(), "POST", "/echo", (), b"a body")
    answer = await answer.done
    assert client.handshake.early_data_accepted
    assert (answer.status, bytes(answer.body), answer.headers.get("x-early-data")) == (200, b"a body", None)
    await end(client)


async def a_ticket_is_good_for_early_data_once():
    ticket = await ticket_for_early_data()
    for accepted in (True, False):
        client, _answer = await connect_early(ticket, "GET", "/echo")
        assert client.handshake.early_data_accepted == accepted
        assert (await client.ask("GET", "/echo")).status == 200
        await end(client)


async def websocket_over_http3_is_refused_and_the_connection_goes_on():
    client = await connect()
    await checks.until("SETTINGS", lambda: client.http.received_settings is not None)
    # RFC 9220: a client may only ask where the server has said so (SETTINGS_ENABLE_CONNECT_PROTOCOL, 0x8).
    assert client.http.received_settings.get(0x8, 0) == 0
    try:
        answer = await client.ask("CONNECT", "/ws", body=b"", pseudo=[(":protocol", "websocket")])
        assert answer.status == 501, answer.headers
    except ConnectionResetError as error:
        # H3_MESSAGE_ERROR, RFC 9114 section 8.1.
        assert str(error) == "0x10e", error
    assert (await client.ask("GET", "/echo")).status == 200
    await end(client)


async def clients_show_their_address_while_many_handshakes_are_open():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # The edge forgets a handshake after 10 s, and may lose a packet: so until it asks.
    while True:
        for _ in range(HALF_OPEN):
            quic = QuicConnection(configuration=configuration())
            quic.connect((ADDRESS, PORT), now=asyncio.get_running_loop().time())
            for data, address in quic.datagrams_to_send(now=asyncio.get_running_loop().time()):
                udp.sendto(data, address)
            await asyncio.sleep(0.001)
        client = await connect()
        assert (await client.ask("GET", "/echo")).status == 200
        await end(client)
        if client._quic._retry_source_connection_id is not None:
            break
    udp.close()


checks.run(
    [
        a_safe_request_is_served_as_early_data,
        an_unsafe_request_waits_for_the_handshake,
        a_ticket_is_good_for_early_data_once,
    ]
    if sys.argv[5:] == ["early"]
    else [
        get_head_and_post,
        large_bodies_both_ways,
        trailers_both_ways,
        many_requests_at_once,
        clients_whose_port_changes_stay_with_their_worker,
        keys_are_updated,
        another_version_is_negotiated,
        an_unknown_version_is_told_what_there_is,
        a_session_is_resumed_without_early_data,
        websocket_over_http3_is_refused_and_the_connection_goes_on,
        # Last: it leaves the edge with open handshakes.
        clients_show_their_address_while_many_handshakes_are_open,
    ]
)
