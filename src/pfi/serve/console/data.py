"""Your data: records by source and task, search, import, keeping out of use, and erasing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Form
from fastapi.responses import Response

from pfi.errors import ConfigError, DataError
from pfi.profile.home import Home
from pfi.records import Record
from pfi.serve.console.jobs import Job, Work
from pfi.serve.console.view import ROOT, ConsoleRoute, Signed, Visit, count, toast

router = APIRouter(route_class=ConsoleRoute)
_PAGE = 25
_LONGEST = 500


@router.get("/data")
def page(visit: Signed, source: str = "", task: str = "", text: str = "") -> Response:
    """What there is, by source, and the newest records."""
    from pfi.sources.connectors import connectors

    with visit.home.open_vault() as vault:
        sources, summary, out = vault.sources(), vault.summary(), vault.excluded.ids()
    return visit.page(
        "data.html",
        sources=sources,
        tasks=summary,
        records=sum(entry.records for entry in summary),
        synthetic=sum(entry.synthetic for entry in summary),
        excluded=len(out),
        connectors=connectors(),
        sizes=visit.home.sizes(),
        **_listed(visit, source, task, text, 0),
    )


@router.get("/data/records")
def records(
    visit: Signed, source: str = "", task: str = "", text: str = "", start: int = 0
) -> Response:
    """The records that meet the conditions, as a part of the page."""
    return visit.page("_records.html", **_listed(visit, source, task, text, start))


def _listed(visit: Visit, source: str, task: str, text: str, start: int) -> dict[str, object]:
    start, text = max(start, 0), text.strip()[:_LONGEST]
    with visit.home.open_vault() as vault:
        found = vault.find(
            task=task or None,
            source=source or None,
            text=text or None,
            limit=start + _PAGE + 1,
        )
        shown = list(islice(found, start, None))
        out = vault.excluded.ids()
    asked = {"source": source, "task": task, "text": text}
    more = start + _PAGE if len(shown) > _PAGE else None
    return {"found": shown[:_PAGE], "out": out, "asked": asked, "start": start, "more": more}


@router.get("/data/record")
def record(visit: Signed, id: str) -> Response:
    """One record, whole."""
    with visit.home.open_vault() as vault:
        (found,) = _chosen(vault.find(ids={id}))
        made = vault.made_from([id])
        out = vault.excluded.ids()
    return visit.page("record.html", record=found, made=made, out=out)


# Kept out of use --------------------------------------------------------------------


@router.post("/data/exclude")
def exclude(
    visit: Signed,
    id: Annotated[str, Form()] = "",
    source: Annotated[str, Form()] = "",
    task: Annotated[str, Form()] = "",
) -> Response:
    """Never retrieve nor learn from a record, or those of a source, until they are let in."""
    from pfi.profile.erase.excluding import exclude as run

    done = run(visit.home, {one.id for one in _meant(visit, id, source, task)})
    line = f"{count(done.records, 'record')} will not be used any more"
    if done.synthetic:
        line += f", nor {count(done.synthetic, 'synthetic record')} made from them"
    line += "."
    return _changed(visit, id, line, out=True)


@router.post("/data/include")
def include(
    visit: Signed,
    id: Annotated[str, Form()] = "",
    source: Annotated[str, Form()] = "",
    task: Annotated[str, Form()] = "",
) -> Response:
    """Use a record again, or those of a source."""
    from pfi.profile.erase.excluding import include as run

    done = run(visit.home, {one.id for one in _meant(visit, id, source, task)})
    return _changed(visit, id, f"{count(done.records, 'record')} can be used again.", out=False)


def _changed(visit: Visit, id: str, line: str, *, out: bool) -> Response:
    """The button that undoes it in its place, or the page anew for a source."""
    if not id:
        return Response(status_code=204, headers=toast(line, **{"HX-Refresh": "true"}))
    response = visit.page("_use.html", id=id, is_out=out)
    response.headers.update(toast(line))
    return response


# Erasing ----------------------------------------------------------------------------


@router.get("/data/erase")
def erase_page(visit: Signed, id: str = "", source: str = "", task: str = "") -> Response:
    """The second step of an erasure: what would go."""
    chosen = _meant(visit, id, source, task)
    with visit.home.open_vault() as vault:
        ids = {one.id for one in chosen}
        made = sum(one.id not in ids for one in vault.made_from(ids))
    return visit.page("erase.html", chosen=chosen, made=made, id=id, source=source, of=task)


@router.post("/data/erase")
def erase_now(
    visit: Signed,
    id: Annotated[str, Form()] = "",
    source: Annotated[str, Form()] = "",
    task: Annotated[str, Form()] = "",
    number: Annotated[int, Form()] = -1,
    retrain: Annotated[bool, Form()] = False,
) -> Response:
    """Erase for good; refused if there are others than were shown."""
    from pfi.profile.erase.erasure import erase

    chosen = _meant(visit, id, source, task)
    if number != len(chosen):
        what = f"there are {len(chosen)} records now, not {number}"
        raise ConfigError(what, fix="look again at what would be erased")
    if retrain and visit.console.jobs.busy():
        raise ConfigError("something else is running", fix="wait until it is done")
    done = erase(
        visit.home,
        [one.id for one in chosen],
        adapters="retrain" if retrain else "drop",
        by="source" if source else "records",
    )
    training = bool(done.statement["adapters"]["to retrain"])
    if training:
        title = "Training anew without what was erased"
        visit.console.jobs.start(visit.profile, "retrain", title, _retrain(visit.home))
    return erased(visit, done.statement, training=training)


def erased(visit: Visit, told: Mapping[str, Any], *, training: bool = False) -> Response:
    """What an erasure did, with the device's signed statement."""
    from pfi.profile.erase import statement

    return visit.page(
        "erased.html",
        lines=[line.removeprefix("- ") for line in statement.lines(told)],
        signed=json.dumps(told, ensure_ascii=False, indent=2),
        training=training,
    )


def _retrain(home: Home) -> Work:
    def work(job: Job) -> Sequence[str]:
        from pfi.profile.learn.retraining import retrain

        found = retrain(home, on_stage=job.on_stage)
        return [
            f"{task}: adapter {version} is in use."
            if version
            else f"{task}: too few records are left to train on."
            for task, version in found.items()
        ]

    return work


def _meant(visit: Visit, id: str, source: str, task: str = "") -> list[Record]:
    """The record with that id, or all of exactly that source, of one task if named.

    Raises:
        ConfigError: both are given, or neither.
        DataError: there is no such record.
    """
    if bool(id) == bool(source):
        raise ConfigError("it is not said which records", fix="name one, or a source")
    with visit.home.open_vault() as vault:
        found = vault.find(ids={id}) if id else vault.find(source=source, task=task or None)
        return _chosen(one for one in found if id or one.source == source)


def _chosen(found: Iterable[Record]) -> list[Record]:
    chosen = list(found)
    if not chosen:
        raise DataError("there is no such record", fix=f"go back to {ROOT}/data")
    return chosen
