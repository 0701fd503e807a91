"""A latency regression test as JUnit XML, which continuous integration shows beside other tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

_SUITE = "edgekit regress"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def to_junit(document: Mapping[str, Any], *, strict: bool = False) -> str:
    """Return the XML: one case for the latency of each target, and one for each check.

    Args:
        document: what ``--json`` prints.
        strict: an inconclusive latency is a failure; else the case is skipped.
    """
    suite = ElementTree.Element("testsuite", name=_SUITE)
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("verdict", "base", "head"):
        _add(properties, "property", name=name, value=str(document[name]))
    for name, target in document["targets"].items():
        _latency(suite, name, target["latency"], target["reasons"], strict)
        for check in target["checks"]:
            case = _case(suite, name, check["name"], 0.0)
            if not check["passed"]:
                _add(case, "failure", message=check["text"], type="regression")
    for name in document["lost"]:
        text = "head holds no such target"
        _add(_case(suite, name, "exists", 0.0), "failure", message=text, type="regression")
    for name, reason in document["skipped"].items():
        _add(_case(suite, name, "latency", 0.0), "skipped", message=reason)
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("errors", "0")
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _latency(
    suite: ElementTree.Element,
    name: str,
    latency: Mapping[str, Any] | None,
    reasons: list[str],
    strict: bool,
) -> None:
    if latency is None:
        return  # head does not run, which is a check
    case = _case(suite, name, "latency", latency["seconds"])
    properties = ElementTree.SubElement(case, "properties")
    figures = {"verdict": latency["verdict"], "limit": latency["limit"], **latency["ratio"]}
    for key, value in figures.items():
        _add(properties, "property", name=key, value=str(value))
    # The reason of the latency stands first where it is a regression, last where it is open.
    if latency["verdict"] == "regression":
        _add(case, "failure", message=reasons[0], type="regression")
    elif latency["verdict"] == "inconclusive" and strict:
        _add(case, "failure", message=reasons[-1], type="inconclusive")
    elif latency["verdict"] == "inconclusive":
        _add(case, "skipped", message=f"inconclusive: {reasons[-1]}")


def _case(
    suite: ElementTree.Element, target: str, name: str, seconds: float
) -> ElementTree.Element:
    where = f"edgekit.regress.{target}"
    return _add(suite, "testcase", classname=where, name=name, time=f"{seconds:.3f}")


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    # XML 1.0 has no way to write most control characters, which a runtime's message may hold.
    clean = {name: _UNPRINTABLE.sub("?", value) for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, clean)
