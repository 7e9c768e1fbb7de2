"""The texts of the OpenAPI description."""

import json
import re
from typing import Any

import pytest

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.web.answers import Failure
from digitserve.web.openapi import description
from digitserve.web.parameters import PARAMETERS, READ_PARAMETERS, Parameter, parse

PATHS = json.loads(description(64))["paths"]
CLASSIFY, READ = (PATHS[path]["post"] for path in ("/v1/classify", "/v1/read"))
BODIES = {408, 413, 415}
"""Statuses of bodies, which are more precise than those of grpc-gateway."""


@pytest.mark.parametrize("status", [int(status) for status in CLASSIFY["responses"] if status != "200"])
def test_errors_name_the_codes_of_their_status(status: int) -> None:
    """Each error begins with the gRPC codes that get its HTTP status."""
    codes, _, cause = CLASSIFY["responses"][str(status)]["description"].partition(": ")
    for code in re.findall(r"\w+", codes):
        assert status in BODIES or Failure.of(Status(Code[code], "")).http_status == status
    assert cause


@pytest.mark.parametrize(
    ("operation", "parameters", "parameter"),
    [
        pytest.param(operation, parameters, parameter, id=f"{operation['operationId']}-{parameter.name}")
        for operation, parameters in ((CLASSIFY, PARAMETERS), (READ, READ_PARAMETERS))
        for parameter in parameters
    ],
)
def test_described_defaults_are_valid(
    operation: dict[str, Any], parameters: tuple[Parameter, ...], parameter: Parameter
) -> None:
    """The default of a parameter in the description is a value that the API accepts."""
    (described,) = (each for each in operation["parameters"] if each["name"] == parameter.name)
    if "default" in described["schema"]:
        default = described["schema"]["default"]
        parse([(parameter.name, default if isinstance(default, str) else json.dumps(default))], parameters)
