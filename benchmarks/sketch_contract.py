"""The messages of the sketch and of the baselines of the wire. No I/O."""

from __future__ import annotations

from typing import Any

from benchmarks.messages import classes_of, file_of

SERVICE = "sketch.v1.SketchService"
WORK, DO, SUBMIT, BATCH = (f"/{SERVICE}/{method}" for method in ("Work", "Do", "Submit", "Batch"))

_classes = classes_of(
    file_of(
        "sketch.v1",
        {
            "Step": {"run_id": "bytes", "number": "int32", "attempt": "int32", "method": "string", "text": "string"},
            "Steps": {"items": "Step*"},
            "Outcome": {"run_id": "bytes", "number": "int32", "attempt": "int32", "text": "string"},
            "Outcomes": {"items": "Outcome*"},
            "Submission": {"shape": "string", "text": "string", "number": "int32"},
            "Submissions": {"items": "Submission*"},
            "Done": {"number": "int32", "text": "string"},
            "Dones": {"items": "Done*"},
        },
    )
)
Step: Any = _classes["Step"]
Steps: Any = _classes["Steps"]
Outcome: Any = _classes["Outcome"]
Outcomes: Any = _classes["Outcomes"]
Submission: Any = _classes["Submission"]
Submissions: Any = _classes["Submissions"]
Done: Any = _classes["Done"]
Dones: Any = _classes["Dones"]
