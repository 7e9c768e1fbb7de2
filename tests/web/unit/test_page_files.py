"""The files of the page: headers, caching, names, and what they refer to."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from digitserve.v1 import digits_pb2 as pb
from digitserve.web import page_files
from digitserve.web.page_files import CONTENT_TYPES, POLICY, page_routes

FOLDER = Path(page_files.__file__).parent / "page"
NAMES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file())
TEXTS = {name: (FOLDER / name).read_text() for name in NAMES if name.endswith((".html", ".css", ".js", ".svg"))}
INDEX = TEXTS["index.html"]
APP = Starlette(routes=page_routes())


def get(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Send a request to the application; return status, header and body."""
    sent: list[Any] = []
    fields = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {
        "type": "http", "method": method, "path": path, "headers": fields, "query_string": b"", "root_path": "",
    }  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with contextlib.suppress(StopIteration):  # it waits for nothing, so it ends at once
        APP(scope, receive, send).send(None)
    received = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], received, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_the_folder_is_served(name: str) -> None:
    """With its content and type, and with the headers that browsers need to restrict it."""
    status, headers, body = get(f"/page/{name}")
    assert (status, body) == (200, (FOLDER / name).read_bytes())
    assert headers["content-type"] == CONTENT_TYPES[name.rpartition(".")[2]]
    assert headers["content-length"] == str(len(body))
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"
    assert "camera=()" in headers["permissions-policy"]


def test_the_root_is_the_page() -> None:
    """``/`` and its file are the same; HEAD has the same header."""
    assert get("/") == get("/page/index.html")
    assert get("/", "HEAD")[:2] == get("/")[:2]
    assert get("/", "POST")[0] == 405


def test_the_policy_is_strict() -> None:
    """Nothing is allowed that the policy does not name, nothing inline, nothing from other hosts."""
    directives = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    assert directives.pop("default-src") == "'none'"
    assert directives.pop("img-src") == "'self' blob: data:"
    assert set(directives.values()) == {"'self'", "'none'"}
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", INDEX)
    for name, text in TEXTS.items():
        assert set(re.findall(r"(?:https?:)?//[a-z][\w.]*\.\w+", text)) <= {"http://www.w3.org"}, name


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '"other",W/{} , "third"', "*"])
def test_a_file_that_the_client_has(form: str) -> None:
    """304 without a body, with the ETag and the headers that the browser stores."""
    etag = get("/page/page.css")[1]["etag"]
    status, headers, body = get("/page/page.css", if_none_match=form.format(etag))
    assert (status, body, headers["etag"]) == (304, b"", etag)
    assert headers["cache-control"] == "no-cache"
    assert headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("form", ["", '"other"', "{}x", "x"])
def test_a_file_that_the_client_does_not_have(form: str) -> None:
    """The content, also if the header is malformed; each file has its own ETag."""
    etag = get("/page/page.css")[1]["etag"]
    assert get("/page/page.css", if_none_match=form.format(etag))[0] == 200
    assert len({get(f"/page/{name}")[1]["etag"] for name in NAMES}) == len(NAMES)


@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(["..", ".", "", "page", "examples", "index.html", "api.py", "%2e%2e", "\0"])).map(
            "/".join
        ),
    )
)
def test_no_other_path_leads_to_a_file(name: str) -> None:
    """404, unless it is exactly the name of a file of the page."""
    status, _, _ = get(f"/page/{name}")
    assert status == (200 if name in NAMES else 404)


def test_what_the_files_refer_to_exists() -> None:
    """Links, scripts, styles, imports and examples are files of the page, routes of the service or modes; ids are in index.html."""
    routes = {"/v1/openapi.json", "/metrics", "/readyz", "#digit", "#number"}
    referred = set(re.findall(r'(?:href|src)="([^"]+)"', INDEX))
    assert referred <= {f"/page/{name}" for name in NAMES} | routes
    scripts = {name: text for name, text in TEXTS.items() if name.endswith(".js")}
    ids = set(re.findall(r'\bid="([^"]+)"', INDEX))
    for text in scripts.values():
        assert set(re.findall(r'\b(?:element|canvas)\("([^"]+)"\)', text)) <= ids
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(NAMES)
    examples = set(re.findall(r'\["([a-z]+\.(?:png|jpg))", "[^"]+"\]', scripts["pictures.js"]))
    assert {f"examples/{name}" for name in examples} == {name for name in NAMES if name.startswith("examples/")}


def test_every_value_of_the_protocol_has_words() -> None:
    """Verdicts, inks, artefacts, kinds of marks and of ignored ink that the service may return are named in the page."""
    files = {
        "answer.js": (pb.Verdict, pb.Artefact, pb.Ink),
        "reading_text.js": (pb.Verdict, pb.MarkKind, pb.IgnoredKind),
    }
    for name, enumerations in files.items():
        for enumeration in enumerations:
            for value in enumeration.keys():  # noqa: SIM118 - not a dict
                if not value.endswith(("_UNSPECIFIED", "_AUTO")):
                    assert value in TEXTS[name]


def test_the_page_is_small() -> None:
    """A page with its examples is loaded in one second at 2 Mbit/s."""
    assert sum((FOLDER / name).stat().st_size for name in NAMES) < 250_000
    assert all((FOLDER / name).stat().st_size < 8_000 for name in NAMES if name.startswith("examples/"))
