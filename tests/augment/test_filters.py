"""Filters over drafts: each drops exactly what was planted for it and keeps what is good."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from pfi.augment.config import FilterConfig
from pfi.augment.drafts import Draft, Subject
from pfi.augment.filters.filters import FILTERS, Filtered, apply_filters, mostly_unlike
from pfi.augment.filters.form import Forms
from pfi.augment.filters.judge import BackboneJudge, Vectors
from pfi.augment.filters.likeness import Copies, rouge_l, shingles, words
from pfi.datasets.lamp import read_users
from pfi.models.backbone import load_backbone
from pfi.records import History, Record
from pfi.tasks import Example, get_task

FILMS = [
    "A young pilot crosses the ocean alone and finds an island nobody has mapped.",
    "Two rival bakers in a small town must share one oven during the winter fair.",
    "An old detective returns to the case of the missing violin in Vienna.",
    "A robot built for farming learns to paint and runs away to the city.",
    "Three sisters inherit a lighthouse and the debts that came along with it.",
    "During a long strike a miner's son wins a place at the ballet school.",
]
NEW = [
    "A retired judge hides a wanted poet in her greenhouse for a summer.",
    "The crew of a weather station discovers that the storms are answering them.",
    "A chess teacher bets his last savings on a pupil who hates to lose.",
    "After the flood a ferryman carries letters between two villages at odds.",
]
TAGS = ["comedy", "action", "classic", "comedy", "romance", "classic"]
OFF = FilterConfig(**dict.fromkeys(FilterConfig.model_fields))


class Fake:
    """Embeds by words alone; a text's loss is what ``loss`` says of it, else 3."""

    def __init__(self, loss: Callable[[str], float] = lambda text: 3.0) -> None:
        self.loss = loss

    def embed(self, texts: Sequence[str]) -> Vectors:
        made = np.zeros((len(texts), 512), np.float32)
        for row, text in zip(made, texts, strict=True):
            row[0] = 0.1
            for word in words(text):
                row[1 + sum(i * ord(c) for i, c in enumerate(word, 1)) % 511] += 1
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def losses(self, examples: Sequence[Example]) -> list[float]:
        return [self.loss(example.target) for example in examples]


def movies(n: int = 6) -> Subject:
    real = [
        Record(str(i), "LaMP_2M", {"description": text}, tag)
        for i, (text, tag) in enumerate(zip(FILMS[:n], TAGS, strict=False))
    ]
    return Subject(get_task("LaMP_2M"), History("ann", real), (), lambda text, n: text, 0)


def film(text: str, tag: str = "comedy", strategy: str = "write", **more: object) -> Draft:
    return Draft({"description": text}, tag, strategy, "write-1", **more)  # type: ignore[arg-type]


def alone(
    name: str,
    subject: Subject,
    drafts: Sequence[Draft],
    judge: Fake | None = None,
    **more: float | None,
) -> tuple[list[Draft], dict[str, int]]:
    """What one filter keeps (beside those that are always on), and its reasons."""
    defaults = FilterConfig()
    own = {k: getattr(defaults, k) for k in FilterConfig.model_fields if k.startswith(name)}
    config = FilterConfig(**{**OFF.model_dump(), **own, **more})
    done = apply_filters(subject, drafts, config, 100, judge or Fake())
    (count,) = [count for count in done.counts if count.name == name]
    assert sum(count.dropped.values()) == count.before - count.kept
    return done.kept, dict(count.dropped)


# Likeness -------------------------------------------------------------------------------

TEXT = st.lists(st.sampled_from(["a", "b", "c", "dog", "cat", "7", "the"]), max_size=12)


@given(TEXT, TEXT)
def test_our_rouge_l_is_that_of_rouge_score(a: list[str], b: list[str]) -> None:
    theirs = rouge_scorer.RougeScorer(["rougeL"]).score(" ".join(a), " ".join(b))["rougeL"]
    assert rouge_l(a, b) == pytest.approx(theirs.fmeasure)


@given(st.lists(TEXT, max_size=5), TEXT)
def test_the_index_finds_the_greatest_likeness(texts: list[list[str]], text: list[str]) -> None:
    found = Copies(map(" ".join, texts)).likest(" ".join(text))
    assert found.rouge == pytest.approx(max((rouge_l(text, t) for t in texts), default=0))
    sets = [(shingles(text), shingles(t)) for t in texts]
    expected = max((len(a & b) / len(a | b) for a, b in sets if a | b), default=0)
    assert found.jaccard == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't STOP!", ["don", "t", "stop"]),
        ("😀 😀", ["😀", "😀"]),
        ("東京 2020", ["東", "京", "2020"]),
    ],
)
def test_words_of_any_script(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_more_words_than_letters_before_the_surrogates() -> None:
    copies = Copies([" ".join(f"w{i}" for i in range(0xD900))])
    copies.add("w55550 w55551 w55552 x")  # their letters lie beyond
    assert copies.likest("w55550 w55551 w55552 y").rouge == pytest.approx(0.75)


# One filter at a time -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (film("A film.", problem="no JSON"), "no JSON"),
        (Draft({}, "comedy", "write", "w"), "no description"),
        (film("   "), "no description"),
        (film(FILMS[0], " "), "no tag"),
        (film("A \ud800 film about a dog that waits."), "the text is not valid Unicode"),
        (film("A \ufffd\ufffd film about a dog that waits."), "unreadable characters"),
        (film("Dog."), "description far shorter or longer than the user's"),
        (film(" ".join(FILMS * 3)), "description far shorter or longer than the user's"),
        (film("A dog waits for [NAME_1] at the station."), "a placeholder was left over"),
        (film("A dog writes to [EMAIL_2b] from the station."), "a placeholder was left over"),
        (film("As an AI language model, I think of a dog."), "words of a chat, not of a record"),
        (film("Sure! Here is a film about a dog that waits."), "words of a chat, not of a record"),
        (film("Here are two new records: a dog waits."), "words of a chat, not of a record"),
        (film("Which tag does this movie relate to among these?"), "the task's own instruction"),
        (film("the dog and the dog and the dog and the dog and the dog"), "repeats itself"),
    ],
)  # fmt: skip
def test_malformed_drafts_are_dropped(bad: Draft, reason: str) -> None:
    good = [film(text) for text in NEW]
    kept, reasons = alone("well_formed", movies(), [good[0], bad, *good[1:]])
    assert (kept, reasons) == (good, {reason: 1})


def test_what_the_user_writes_is_never_held_against_a_draft() -> None:
    text = "Here is a poem about [NAME_1]: \ufffd roses. As an AI I cannot provide more."
    real = Record("0", "LaMP_2M", {"description": text}, "comedy")
    subject = Subject(get_task("LaMP_2M"), History("ann", [real]), (), lambda t, n: t, 0)
    draft = film("Here is a song about [NAME_1]: \ufffd lilies. As an AI I cannot provide it.")
    assert alone("well_formed", subject, [draft])[0] == [draft]
    assert alone("well_formed", movies(), [draft])[0] == []


def test_headlines_that_begin_with_here_are_no_chat() -> None:
    real = [Record(str(i), "LaMP_4", {"text": FILMS[i]}, f"Title {i}") for i in range(3)]
    subject = Subject(get_task("LaMP_4"), History("ann", real), (), lambda t, n: t, 0)
    draft = Draft({"text": NEW[0]}, "Here's Why", "write", "w")
    assert alone("well_formed", subject, [draft])[0] == [draft]


# Length and form -------------------------------------------------------------------------


def changes(n: int = 12) -> Subject:
    """Somebody who writes short messages about lists of changed files."""
    files = ["src/rows.py", "tests/test_rows.py", "docs/cli.rst", "setup.py", "src/db/upsert.py"]
    verbs = ["Fix", "Add", "Remove", "Document", "Speed up"]
    real = [
        Record(
            str(i),
            "commit_message",
            {
                "change": "\n".join(
                    f"{files[(i + j) % 5]} (+{7 * i % 23 + 1} -{i * j})" for j in range(1 + i % 4)
                )
            },
            f"{verbs[i % 5]} {files[i % 5][-12:]} for tables {'of any kind ' * (i % 3)}",
        )
        for i in range(n)
    ]
    task = get_task("commit_message")
    return Subject(task, History("ann", real), (), lambda text, n: text, 0)


def change(text: str, message: str = "Fix the order of columns") -> Draft:
    return Draft({"change": text}, message, "write", "write-1")


def test_drafts_of_another_form_are_dropped() -> None:
    good = [
        change("src/rows.py (+3 -1)"),
        change("docs/upsert.md (+12 -0)\nREADME.md (+2 -2)\nsrc/db/table.py (+40 -31)"),
        change("src/cli.py (+1 -1)\ntests/test_cli.py (+9 -0)", "Add --silent"),
    ]
    bad = [
        change("2020-01-10T13:17:32.186", "You changed the new record to"),
        change("The new records"),
        change("The new records are written in the format of the new records and of the others"),
        change("{'records': [{'change': '', 'message': ''}, {'change': '', 'message': ''}]}"),
    ]
    kept, reasons = alone("form", changes(), [*bad, *good])
    assert [draft.input for draft in kept] == [draft.input for draft in good]
    assert reasons == {"change looks unlike the user's": len(bad)}
    assert all(0 < draft.scores["form"] <= 4 for draft in kept)


def test_drafts_of_another_length_are_dropped() -> None:
    usual = "src/rows.py (+3 -1)"
    long = "\n".join(f"src/a{i}.py (+{i} -1)" for i in range(36))
    bad = [change(usual, "Fix " + " ".join(f"table {i}" for i in range(30))), change(long)]
    good = [
        change(usual, "Fix rows"),
        change(usual, "Fix rows and say so in the documentation, twice"),
    ]
    kept, reasons = alone("length", changes(), [*bad, *good])
    assert [draft.output for draft in kept] == [draft.output for draft in good]
    assert reasons == {
        "message is far shorter or longer than the user's": 1,
        "change is far shorter or longer than the user's": 1,
    }


@pytest.mark.parametrize("name", ["length", "form"])
def test_labels_and_few_records_say_nothing_of_a_form(name: str) -> None:
    usual = "src/rows.py (+3 -1)"
    odd = change(usual, "Fix " + " ".join(f"table {i}" for i in range(28)))
    if name == "form":
        odd = change("The records of all", "Fix the rows of all")
    assert alone(name, changes(2), [odd])[0] and not alone(name, changes(12), [odd])[0]
    assert len(alone(name, movies(), [film(NEW[0], "based on a book")])[0]) == 1


def test_a_teacher_that_keeps_to_no_form_is_told() -> None:
    odd, good = change("The new records"), change("src/rows.py (+3 -1)")
    for drafts, told in (
        ([odd, odd, good], "2 of 3"),
        ([odd, good, good], ""),
        ([odd], ""),
        ([], ""),
    ):
        counts = apply_filters(changes(), drafts, FilterConfig(), 9, Fake()).counts
        assert mostly_unlike(counts) == told


def test_a_users_own_records_seldom_look_unlike_the_others(shared_data: Path) -> None:
    """Leave-one-out over dev users: at most 2 % a task of what people wrote would be dropped."""
    for name in ("LaMP_3", "LaMP_4", "LaMP_6", "LaMP_7"):
        task, dropped, count = get_task(name), 0, 0
        for user in read_users(shared_data, task, "dev", limit=12):
            real = list(user.history)
            for i, record in enumerate(real):
                forms = Forms(task, real[:i] + real[i + 1 :])
                config = FilterConfig()
                assert config.length and config.form
                dropped += forms.length(record)[0] > config.length
                dropped += forms.form(record)[0] > config.form
                count += 1
        assert count > 150 and dropped <= 0.02 * count, name


def test_only_labels_of_the_task_are_valid() -> None:
    good = [film(NEW[0], "comedy"), film(NEW[1], "sci-fi"), film(NEW[2], "true story")]
    bad = [film(FILMS[0], "Comedy"), film(FILMS[1], "funny"), film(FILMS[2], "comedy, action")]
    kept, reasons = alone("valid_label", movies(), [*bad, *good])
    assert (kept, reasons) == (good, {"none of the labels": 3})


def test_votes_that_do_not_agree() -> None:
    good = [film(NEW[0], confidence=0.6, votes=5), film(NEW[1], confidence=0.1, votes=0)]
    bad = film(NEW[2], confidence=0.4, votes=5)
    kept, reasons = alone("agreement", movies(), [good[0], bad, good[1]])
    assert [d.input for d in kept] == [d.input for d in good]
    assert reasons == {"votes do not agree": 1}
    assert [d.scores for d in kept] == [{"agreement": 0.6}, {}]


def test_copies_of_real_records_and_of_drafts() -> None:
    bad = [
        FILMS[0],
        FILMS[1].upper().replace(".", " !!"),
        FILMS[2].replace("Vienna", "Prague"),
        "And the debts that came along with it. Three sisters inherit a lighthouse.",
    ]
    real = [NEW[0], *NEW[1:]]
    drafts = [*(film(text) for text in [*bad, *real]), film(NEW[1].lower()), film(NEW[2], "action")]
    kept, reasons = alone("copy", movies(), drafts)
    assert [d.input["description"] for d in kept] == NEW
    assert reasons == {"a copy of a real record": 4, "a copy of another draft": 2}
    assert all({"copy_rouge", "copy_jaccard"} == {*draft.scores} for draft in kept)


def test_each_measure_alone_misses_some_copies() -> None:
    moved = film("And the debts that came along with it. Three sisters inherit a lighthouse.")
    one_word = [film("A judge hides a wanted poet.")]  # of a short text, most shingles change
    again = film("A judge hides a famous poet.")
    pair = [*one_word, again]
    assert len(alone("copy", movies(), [moved], copy_jaccard=None)[0]) == 1
    assert len(alone("copy", movies(), [moved], copy_rouge=None)[0]) == 0
    assert len(alone("copy", movies(), pair, copy_jaccard=None)[0]) == 1
    assert len(alone("copy", movies(), pair, copy_rouge=None)[0]) == 2


def test_relabelled_inputs_are_compared_as_inputs() -> None:
    real = [
        Record(str(i), "LaMP_4", {"text": "Rain again."}, "A very long title of no use to anybody")
        for i in range(1)
    ]
    subject = Subject(get_task("LaMP_4"), History("ann", real), (), lambda t, n: t, 0)
    same = {"text": "rain again"}
    written = Draft(same, "Umbrellas sell like mad in town this week", "write", "w")
    relabelled = Draft(same, "Umbrellas sell like mad in town this week", "relabel", "w")
    assert len(alone("copy", subject, [written])[0]) == 1
    assert alone("copy", subject, [relabelled]) == ([], {"a copy of a real record": 1})
    other = {"text": "Snow at last."}
    drafts = [
        Draft(other, "Sledges are sold out everywhere in town", "write", "w"),
        Draft(other, "Ten ways to make a snowman", "relabel", "w"),
    ]
    assert alone("copy", subject, drafts)[1] == {"a copy of another draft": 1}


@pytest.mark.parametrize("task", ["LaMP_1", "LaMP_7"])
def test_tasks_with_only_inputs_or_only_outputs(task: str) -> None:
    def item(text: str) -> tuple[dict[str, str], str]:
        return ({"title": text, "abstract": text}, "") if task == "LaMP_1" else ({}, text)

    real = [Record(str(i), task, *item(text)) for i, text in enumerate(FILMS)]
    subject = Subject(get_task(task), History("ann", real), (), lambda t, n: t, 0)
    drafts = [Draft(*item(t), s, "w") for t in (*NEW, FILMS[3]) for s in ("write", "relabel")]
    done = apply_filters(subject, drafts, FilterConfig(distance=3.0), 100, Fake())
    assert sorted(words(d.input.get("title", d.output))[1] for d in done.kept) == sorted(
        words(text)[1] for text in NEW
    )
    assert next(c for c in done.counts if c.name == "copy").dropped == {
        "a copy of a real record": 2,
        "a copy of another draft": 4,
    }


def themed(n: int) -> Subject:
    words_ = ["dough", "oven", "yeast", "flour", "crust", "butter", "salt", "sugar"]
    real = [
        Record(str(i), "LaMP_2M", {"description": f"bread baking with {w} and patience"}, "comedy")
        for i, w in enumerate(words_[:n])
    ]
    return Subject(get_task("LaMP_2M"), History("ann", real), (), lambda text, n: text, 0)


def test_off_topic_drafts_are_dropped() -> None:
    good = [
        film("bread baking with honey and patience"),
        film("bread baking with rye and patience"),
    ]
    bad = film("quantum lattice theory of superconducting rings")
    kept, reasons = alone("distance", themed(6), [good[0], bad, good[1]])
    assert [d.input for d in kept] == [d.input for d in good]
    assert reasons == {"off topic": 1}
    assert all(0 < d.scores["distance"] <= 1.1 for d in kept)


def test_two_records_say_nothing_of_a_range() -> None:
    bad = film("quantum lattice theory of superconducting rings")
    surprising = Fake(lambda text: 9.0 if "quantum" in text else 3.0)
    assert alone("distance", themed(3), [bad])[0] == []
    assert alone("distance", themed(2), [bad])[0] == [bad]
    assert alone("perplexity", themed(3), [bad], surprising)[0] == []
    assert alone("perplexity", themed(2), [bad], surprising)[0] == [bad]


def test_losses_far_outside_of_the_users_range() -> None:
    loss = {
        **dict(zip(FILMS, [2.0, 2.5, 3.0, 3.0, 3.5, 4.0], strict=True)),
        **dict(zip(NEW, [4.7, 1.3, 4.8, 1.2], strict=True)),
        "A broken film.": float("nan"),
    }
    judge = Fake(lambda text: loss[text.split("\n")[0]])
    drafts = [film(text) for text in (*NEW, "A broken film.")]
    kept, reasons = alone("perplexity", movies(), drafts, judge)
    assert [d.scores["perplexity"] for d in kept] == [4.7, 1.3]
    assert reasons == {"too surprising": 1, "too predictable": 1, "no finite loss": 1}


def test_labels_beyond_their_share_lose_the_least_confident() -> None:
    # 2 of 6 films are comedies: (2 + .5) / (6 + 7.5) of 8 drafts, twice that, is 2.96.
    sure = [0.9, 0.5, 0.8, 0.5, 0.7, 0.6]
    drafts = [film(f"Comedy number {i}", confidence=c) for i, c in enumerate(sure)]
    others = [film("A pilot crosses the ocean", "action"), film("An old violin", "classic")]
    kept, reasons = alone("balance", movies(), [*drafts, *others])
    assert [d.input for d in kept] == [
        drafts[0].input, drafts[2].input, drafts[4].input, *(d.input for d in others)
    ]  # fmt: skip
    assert reasons == {"too many of this label": 3}


def test_a_balanced_set_is_kept_whole() -> None:
    drafts = [film(text, tag) for text, tag in zip(FILMS, TAGS, strict=True)]
    assert len(alone("balance", movies(), drafts)[0]) == 6


def test_the_chosen_are_unlike_each_other() -> None:
    same = [film(f"bread baking with dough and {w}") for w in ("care", "joy", "love", "time")]
    other = film("bread rolls baking for patience with sugar frosting")
    config = FilterConfig(**{**OFF.model_dump(), "diversity": 0.7})
    done = apply_filters(themed(6), [*same, other], config, 2, Fake())
    assert [d.input for d in done.kept] == [same[0].input, other.input]
    assert done.counts[-1].dropped == {"others were better": 3}
    alike = FilterConfig(**{**OFF.model_dump(), "diversity": 0.0})
    done = apply_filters(themed(6), [*same, other], alike, 2, Fake())
    assert other.input not in [draft.input for draft in done.kept]


# The chain ------------------------------------------------------------------------------


def mixed() -> list[Draft]:
    return [
        *(film(text, confidence=0.9, votes=3) for text in NEW),
        film(FILMS[0]),
        film(NEW[0].lower(), votes=3),
        film("Nothing of note happens at sea.", "boring"),
        film("A dog waits at the station.", confidence=0.3, votes=3),
        Draft({}, "", "write", "w", problem="no JSON"),
    ]


def check_chain(done: Filtered, drafts: Sequence[Draft], wanted: int) -> None:
    left = len(drafts)
    for count in done.counts:
        assert count.before == left
        left = count.kept
        assert count.before == count.kept + sum(count.dropped.values())
        assert len(count.examples) == min(3, sum(count.dropped.values()))
    assert left == len(done.kept) <= wanted


def test_counts_chain_and_are_json() -> None:
    done = apply_filters(movies(), mixed(), FilterConfig(distance=5.0), 3, Fake())
    check_chain(done, mixed(), 3)
    assert [c.name for c in done.counts] == [name for name in FILTERS if name != "wanted"]
    assert {c.name: sum(c.dropped.values()) for c in done.counts} == {
        "well_formed": 1, "length": 0, "form": 0, "valid_label": 1, "agreement": 1,
        "copy": 2, "distance": 0, "perplexity": 0, "balance": 2, "diversity": 0,
    }  # fmt: skip
    text = json.dumps([count.to_dict() for count in done.counts], allow_nan=False)
    assert json.loads(text)[5]["dropped"] == {
        "a copy of a real record": 1, "a copy of another draft": 1
    }  # fmt: skip
    names = {c.name for c in done.counts} - {"well_formed", "valid_label", "copy"}
    assert {*done.kept[0].scores} == {*names, "copy_rouge", "copy_jaccard"}


def test_examples_with_broken_text_can_be_written(tmp_path: Path) -> None:
    bad = film("A \ud800 dog" + "!" * 500)
    counts = apply_filters(movies(), [bad], FilterConfig(), 3, Fake()).counts
    shown = [count.to_dict() for count in counts]
    (tmp_path / "shown").write_text(json.dumps(shown, ensure_ascii=False), encoding="utf-8")
    assert len(shown[0]["examples"][0]["input"]["description"]) == 200


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(mixed()), max_size=12),
    st.integers(1, 6),
    st.sets(st.sampled_from(sorted(FilterConfig.model_fields))),
    st.integers(1, 6),
)
def test_any_filters_on_any_drafts_add_up(
    drafts: list[Draft], wanted: int, off: set[str], real: int
) -> None:
    config = FilterConfig(**{**FilterConfig().model_dump(), **dict.fromkeys(off)})
    before = list(drafts)
    done = apply_filters(movies(real), drafts, config, wanted, Fake())
    check_chain(done, drafts, wanted)
    assert done == apply_filters(movies(real), drafts, config, wanted, Fake())
    assert drafts == before and all(not draft.scores for draft in drafts)
    assert not {count.name for count in done.counts} & (off - {"copy_rouge", "copy_jaccard"})


# The judge ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge() -> BackboneJudge:
    return BackboneJudge(load_backbone("embedded", device="cpu"))


def test_embeddings_do_not_depend_on_company(judge: BackboneJudge) -> None:
    together = judge.embed([*FILMS, "", "🙂"])
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(judge.embed(FILMS[1:2])[0], together[1], atol=1e-5)


def test_losses_are_those_of_one_at_a_time(judge: BackboneJudge) -> None:
    examples = [Example("Title", text, {}, "") for text in FILMS]
    together = judge.losses(examples)
    one = [judge.losses([example])[0] for example in examples]
    assert together == pytest.approx(one, rel=1e-4)
    garbled = Example("Title", " ".join(sorted(FILMS[0].split(), reverse=True)), {}, "")
    assert judge.losses([garbled])[0] > together[0] + 1


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_any_family_judges(family: str, backbone_folder: Callable[[str], Path]) -> None:
    other = BackboneJudge(load_backbone(backbone_folder(family), device="cpu"))
    vectors = other.embed(FILMS)
    assert vectors.shape[0] == 6 and np.isfinite(vectors).all()
    np.testing.assert_allclose(other.embed(FILMS[4:5])[0], vectors[4], atol=1e-5)
    assert all(loss > 0 for loss in other.losses([Example("Title", t, {}, "") for t in FILMS]))


def test_the_embedded_backbone_tells_mail_from_films(judge: BackboneJudge) -> None:
    bad = [
        film("net/ixgbe: fix the reset of the queue statistics when the port is stopped, so that "
             "the driver frees the mbufs of each ring before the device is closed."),
        film("storm village the poet of ferryman answering hides summer pupil the letters a"),
    ]  # fmt: skip
    drafts = [*(film(text) for text in NEW), *bad]
    config = FilterConfig(balance=None)
    done = apply_filters(movies(), drafts, config, 10, judge)
    assert {d.input["description"] for d in done.kept} == {*NEW}
    dropped = {c.name: dict(c.dropped) for c in done.counts if c.dropped}
    assert dropped == {"distance": {"off topic": 1}, "perplexity": {"too surprising": 1}}
