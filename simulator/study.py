"""A study from its settings to its report: one row for each case, on disk as soon as it is known.

A study that stopped goes on with the cases that are missing. Which studies there are, and what each
must offer, is said in `studies/`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .run_directory import RunDirectory, write_json
from .studies import Study, find
from .watcher import Watcher


def cases_of(study: Study) -> list[dict[str, Any]]:
    """All cases of a study, as JSON reads them back.

    Raises:
        ValueError: settings that cannot be measured, cases that are not JSON, or none, or two
            equal ones.
    """
    found = find(study.name).cases(study.settings, study.run.seed)
    cases = [_plain(case, f"study {study.name}: a case") for case in found]
    if not cases:
        raise ValueError(f"study {study.name}: these settings leave no case; list at least one")
    texts = [json.dumps(case, sort_keys=True) for case in cases]
    for i, text in enumerate(texts):
        if text in texts[:i]:
            raise ValueError(f"study {study.name}: the case {text} occurs twice; list it once")
    return cases


def carry_out(directory: RunDirectory, study: Study, watcher: Watcher) -> dict[str, Any]:
    """Measures the cases that are missing and writes result and report.

    Returns:
        The result: run (the folder), study, seconds, and what the study's `summary` says; as in
        result.json.

    Raises:
        ValueError: a row on disk that is not of its case, or what `measure` or `summary` gives is
            not JSON (NaN is not; None is).
    """
    module, cases, rows = find(study.name), cases_of(study), directory.metrics()
    _check_rows(directory, rows, cases)
    directory.cut_metrics(len(rows))  # what was cut short
    text = f"study {study.name}, {len(cases)} cases"
    watcher.started(directory, text, len(cases), len(rows))
    for case in cases[len(rows) :]:
        begin = time.perf_counter()
        measured = module.measure(study.settings, study.run.seed, case)
        seconds = round(time.perf_counter() - begin, 3)
        row = case | dict(measured) | {"seconds": seconds}
        row = _plain(row, f"study {study.name}: what was measured for {json.dumps(case)}")
        directory.append_metrics(row)
        rows.append(row)
        watcher.row(row, len(rows))
    result = {
        "run": str(directory.path),
        "study": study.name,
        "seconds": round(sum(row["seconds"] for row in rows), 3),
    }
    summary = dict(module.summary(study.settings, rows))
    result |= _plain(summary, f"study {study.name}: its summary")
    write_json(directory.path / "result.json", result)
    _write_report(directory, study, rows, result)
    directory.set_state("complete")
    return result


def _plain(value: Mapping[str, Any], who: str) -> dict[str, Any]:
    """The dict as JSON reads it back: the same in the process that wrote it and in a later one."""
    try:
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who} is not JSON ({error}): give finite plain values or None") from None


def _check_rows(
    directory: RunDirectory, rows: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]
) -> None:
    for i, row in enumerate(rows):
        if i >= len(cases) or any(row.get(k, row) != v for k, v in cases[i].items()):
            raise ValueError(
                f"{directory.path / 'metrics.jsonl'}: line {i + 1} is not of case {i + 1} of these "
                "settings: the file was changed, or the study is another one now; start a new run"
            )


def _write_report(
    directory: RunDirectory,
    study: Study,
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
) -> None:
    from . import report  # here, since it brings matplotlib, which takes long to import

    module = find(study.name)
    images = report.save_pictures(directory, module.pictures(study.settings, rows))
    titles = {name: name for name in images} | dict(getattr(module, "TITLES", {}))
    report.save_page(
        directory,
        [
            report.paragraph(getattr(module, "TEXT", "")),
            report.table(result.items()),
            *report.inlined(images, titles),
            "<h2>Cases</h2>",
            report.rows_table(rows),
        ],
    )
