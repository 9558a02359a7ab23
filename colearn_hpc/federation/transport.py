"""What both ends of the connection must agree on, in one place: method names, limits, keepalive, credentials.

gRPC over TLS with certificates at both ends. A site dials out, the coordinator listens on one port. ``https_proxy`` is
honoured by gRPC itself (an HTTP CONNECT, inside which TLS runs from end to end).
"""

from __future__ import annotations

import grpc

from colearn_hpc.federation import wire
from colearn_hpc.federation.agreement import Federation
from colearn_hpc.federation.identity import Identity

MEET, MEAN = "/colearn.Run/Meet", "/colearn.Run/Mean"
POLL = 20.0  # s for which the coordinator holds a site's question open before it answers "wait on"
KEEPALIVE = 20  # s between two pings on a connection; a server that allows fewer ends it ("too_many_pings")
KEEPALIVE_ANSWER = 20  # s

_BOTH = (
    ("grpc.max_receive_message_length", wire.LARGEST_CONTROL + 4096),
    ("grpc.max_send_message_length", wire.LARGEST_CONTROL + 4096),
    ("grpc.keepalive_time_ms", KEEPALIVE * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
CLIENT_OPTIONS = (
    *_BOTH,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.enable_retries", 0),  # we retry ourselves: it has to be heard by people
)
SERVER_OPTIONS = (
    *_BOTH,
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE * 1000 // 2),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_concurrent_streams", 16),  # of one connection; a site has one question and a mean or two
    ("grpc.so_reuseport", 0),  # a second coordinator on this port is an error, and not a lottery
    ("grpc.max_connection_age_grace_ms", 5000),
)


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """The coordinator's: only who has a certificate of the run's authority gets through."""
    pair = (identity.key, identity.certificate)
    return grpc.ssl_server_credentials([pair], root_certificates=identity.ca, require_client_auth=True)


def channel_of(federation: Federation, identity: Identity, trusted: bytes) -> grpc.Channel:
    """A site's connection to its coordinator; it is made when it is needed, and made again when it is lost.

    Args:
        federation: where.
        identity: of the site.
        trusted: the coordinator's own certificate, PEM; no other of the same authority passes.
    """
    credentials = grpc.ssl_channel_credentials(trusted, identity.key, identity.certificate)
    return grpc.secure_channel(federation.coordinator, credentials, CLIENT_OPTIONS)
