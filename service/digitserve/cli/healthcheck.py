"""``digitserve healthcheck``: whether a service is ready, for container health checks and scripts.

Without flags it requests ``/readyz`` of the service with the same environment: that needs neither a token nor a client
certificate, and takes 0.1 s of CPU time, because gRPC is not imported. Otherwise it calls grpc.health.v1.
"""

import os
from typing import TYPE_CHECKING

import click

from digitserve.cli.exit_codes import ExitCode
from digitserve.cli.options import Command, Option, Target, local_host, target_options, timeout_option
from digitserve.cli.output import print_error, print_line
from digitserve.protocol.names import OPEN_INFERENCE_SERVICE, SERVICE
from digitserve.settings import Settings, endpoint, environment_value, environment_variable, setting_named

if TYPE_CHECKING:
    import ssl

MAX_BODY_BYTES = 1 << 16

_READY, _NOT_READY = 200, 503


@click.command(cls=Command)
@target_options
@timeout_option(2.0, "Maximum time to wait for the answer, in seconds.")
@click.option(
    "--service",
    cls=Option,
    metavar="NAME",
    help=f"Full name of the gRPC service to check, such as {SERVICE}.  [default: the server as a whole]",
)
@click.pass_context
def healthcheck(context: click.Context, /, *, target: Target, timeout_s: float, service: str | None) -> None:
    """Print whether the service is ready.

    Without --address, --service, --ca and --client-certificate it requests /readyz on the HTTP port of the service that has
    the same environment: DIGITSERVE_HOST, DIGITSERVE_HTTP_PORT, DIGITSERVE_TLS_CERTIFICATE. With one of them it calls
    grpc.health.v1 on the gRPC port. Neither needs a token.

    \b
    Exit codes: 0 ready, SERVING; 1 any other status, or an unknown service;
    2 wrong usage; 3 no service answers; 4 no answer in time; 5 access denied: TLS
    handshake failed; 130 stopped by Ctrl-C.
    """
    if target.address is None and service is None and not {"ca", "certificate", "key"} & {*target.credentials}:
        context.exit(_check_readiness(timeout_s))
    context.exit(_check_health(target, timeout_s, service or ""))


def _check_health(target: Target, timeout_s: float, service: str) -> ExitCode:
    """Call grpc.health.v1 and print the status."""
    from digitserve.client import RequestRejected

    with target.open_client(num_connections=1, timeout_s=timeout_s) as client:
        try:
            status = client.health(service)
        except RequestRejected as error:
            if error.code.name != "NOT_FOUND":
                raise
            print_error(
                f"--service: the server has no service '{service}'; expected {SERVICE} or {OPEN_INFERENCE_SERVICE}, or no "
                "--service for the server as a whole"
            )
            return ExitCode.NEGATIVE
    print_line(status)
    return ExitCode.OK if status == "SERVING" else ExitCode.NEGATIVE


def _check_readiness(timeout_s: float) -> ExitCode:
    """Request ``/readyz`` on the HTTP port of the service with the same environment, and print its answer."""
    import ssl
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    host, port = local_host(), _http_port()
    tls = environment_value(setting_named("tls_certificate"), os.environ) is not None
    url = f"{'https' if tls else 'http'}://{endpoint(host, port)}/readyz"
    # No proxy: http.client does not use any.
    connection = (
        HTTPSConnection(host, port, timeout=timeout_s, context=_unverified())
        if tls
        else HTTPConnection(host, port, timeout=timeout_s)
    )
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        text = response.read(MAX_BODY_BYTES).decode("utf-8", "replace").strip()
    except TimeoutError:
        print_error(f"{url}: no answer within {timeout_s:g} s")
        return ExitCode.TIMEOUT
    except ssl.SSLError as error:
        print_error(
            f"{url}: the TLS handshake failed ({error.reason}); if the service does not use TLS, unset DIGITSERVE_TLS_CERTIFICATE"
        )
        return ExitCode.DENIED
    except ConnectionRefusedError:
        print_error(f"{url}: no service listens; to check the gRPC port of another service, use --address")
        return ExitCode.UNREACHABLE
    except (OSError, HTTPException) as error:
        hint = "" if tls else "; if the service uses TLS, set DIGITSERVE_TLS_CERTIFICATE as for the service"
        print_error(f"{url}: no service answers ({error}){hint}")
        return ExitCode.UNREACHABLE
    finally:
        connection.close()
    if response.status not in {_READY, _NOT_READY}:
        print_error(f"{url}: got HTTP status {response.status}; is this the HTTP port of digitserve?")
        return ExitCode.NEGATIVE
    print_line(text)
    return ExitCode.OK if response.status == _READY else ExitCode.NEGATIVE


def _http_port() -> int:
    setting = setting_named("http_port")
    text = environment_value(setting, os.environ) or str(Settings.http_port)
    if not (text.isdecimal() and 0 < int(text) < 1 << 16):
        raise click.UsageError(
            f"{environment_variable(setting)}: got '{text}', expected a port from 1 to 65535; or use --address for the gRPC port"
        )
    return int(text)


def _unverified() -> "ssl.SSLContext":
    """Return a TLS configuration that accepts every certificate.

    The service is on this machine, the request has no secret, and the certificate is seldom for the name of a local address.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
