"""Checks of samples: which ones training sees, and whether those of one split come back in another."""

from __future__ import annotations

from cl_ovq.audits.findings import Finding, judged, not_applicable
from cl_ovq.audits.subject import Subject, contents
from cl_ovq.encoders.stream import EncodedStream
from streams import rows_of


def past_samples(subject: Subject) -> Finding:
    """Nothing of past experiences enters a training pass unless the strategy says that it keeps samples.

    Measured: every tensor of a sample's shape that comes to any module while the strategy trains is compared, by
    content, with the training samples of all experiences and with the test samples. A strategy with a buffer may see no
    more different past samples than it says to hold.
    """
    if subject.part.at_once:
        return not_applicable("all experiences are learned at once, so none is past")
    watched = subject.plain
    run, kept_bytes = watched.run, watched.result.provenance["replay_bytes"]
    streams, samples = run.stream.benchmark.streams, run.stream.samples
    train = [{*contents(samples, rows_of(one.dataset))} for one in streams["train"]][: run.experiences]
    test = {key for one in streams["test"] for key in contents(samples, rows_of(one.dataset))}.difference(*train)
    past: dict[int, int] = {}
    recognised = tested = 0
    for now, own in enumerate(train):
        seen = watched.seen.get(now, set())
        before: set[bytes] = set().union(*train[:now]) - own
        past[now] = len(seen & before)
        recognised += len(seen & own) + past[now]
        tested += len(seen & test)
    kept, most = max(watched.kept.values(), default=0), max(past.values())
    measured = {"past_samples": most, "kept_samples": kept, "kept_bytes": kept_bytes, "test_samples": tested}
    if not recognised:
        return not_applicable("no sample was recognised: all are modified before a module reads them", **measured)
    if tested:
        return judged(True, f"{tested} test samples came to the model while it trained", "", **measured)
    if subject.part.sees_all:
        return judged(False, "", "the strategy says that it learns from all data so far", **measured)
    beyond = next((now for now, count in past.items() if count > watched.kept.get(now, 0)), None)
    if beyond is not None:
        said = f"the strategy says it holds {watched.kept.get(beyond, 0)}"
        bad = f"in experience {beyond + 1} training saw {past[beyond]} past samples, and {said}"
        return judged(True, bad, "", **measured)
    good = f"of the {kept} samples that the strategy says it holds" if kept else "and none is said to be kept"
    return judged(False, "", f"training saw {most} past samples, {good}", **measured)


def disjoint_data(subject: Subject) -> Finding:
    """No test sample is a training or validation sample, and no validation sample a training sample.

    Measured: samples are compared by content (a hash of all their bytes), not by their place in a file; where an
    encoder is frozen, the images or texts before it. The whole stream counts, not only the audited experiences.
    """
    stream = subject.stream
    samples = stream.raw.samples if isinstance(stream, EncodedStream) else stream.samples
    found = {
        name: [key for one in experiences for key in contents(samples, rows_of(one.dataset))]
        for name, experiences in stream.benchmark.streams.items()
    }
    train, validation, test = ({*found.get(name, [])} for name in ("train", "validation", "test"))
    shared = {
        "test_in_training": sum(key in train for key in found["test"]),
        "test_in_validation": sum(key in validation for key in found["test"]),
        "validation_in_training": sum(key in train for key in found.get("validation", [])),
    }
    measured = {**shared, "test_samples": len(found["test"]), "twice_in_test": len(found["test"]) - len(test)}
    said = {name: " samples are in ".join(name.split("_in_")) for name in shared}
    bad = ", ".join(f"{count:,} {said[name]} data" for name, count in shared.items() if count)
    good = f"training, validation and test data have no sample in common ({sum(map(len, found.values())):,} compared)"
    return judged(bool(bad), bad, good, **measured)
