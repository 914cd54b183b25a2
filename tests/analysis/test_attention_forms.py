"""Every form of fused attention that onnxruntime runs has a rule, and its cuts are exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from attention_forms import SIZE, StandardForm, nonpadded_forms, standard_forms
from contrib_attention_forms import MultiHeadForm, PackedForm, multi_head_forms, packed_forms
from graph_laws import assert_exact, random_plan
from graph_text import net

from onnxprune.analysis.walk import analyze
from onnxprune.errors import ModelError
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session, example_feeds

Form = StandardForm | PackedForm | MultiHeadForm
SAMPLE = 7  # one form in so many is checked; all of them with -m exhaustive
CONTRIB_SAMPLE = 5  # onnxruntime refuses most of them


def valid_model(form: Form) -> Model | None:
    """Return the model of a form; None if onnxruntime refuses it."""
    model = load(net(form.text, opset=form.opset))
    try:
        Session(model, optimize=False).run(example_feeds(model))
    except ModelError:
        return None
    return model


def joins_unequal_sizes(form: Form) -> bool:
    """Return whether one axis holds projections of unequal sizes, which no pattern expresses."""
    if isinstance(form, StandardForm) or form.value_size == SIZE:
        return False
    return isinstance(form, PackedForm) or form.bias


def check(forms: Iterable[Form]) -> int:
    """Check that valid forms have rules and that cuts are exact; return the number of forms."""
    count, rng = 0, np.random.default_rng(0)
    for form in forms:
        model = valid_model(form)
        if model is None:
            continue
        analysis = analyze(model)
        if joins_unequal_sizes(form):
            assert not analysis.groups
            continue
        # heads and value sizes; a mask or a past may not freeze them
        assert len(analysis.groups) >= 2, (form, analysis.frozen)
        assert_exact(analysis, random_plan(analysis, rng))
        count += 1
    return count


def test_forms_of_attention() -> None:
    assert check(list(standard_forms())[::SAMPLE]) > 20


def test_attention_to_keys_without_padding() -> None:
    assert check(nonpadded_forms()) > 2


@pytest.mark.parametrize("forms", [packed_forms, multi_head_forms], ids=lambda f: f.__name__)
def test_forms_of_contrib_attention(forms: Callable[[], Iterable[Form]]) -> None:
    assert check(list(forms())[::CONTRIB_SAMPLE]) > 10


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("forms", [packed_forms, multi_head_forms], ids=lambda f: f.__name__)
def test_all_forms_of_contrib_attention(forms: Callable[[], Iterable[Form]]) -> None:
    assert check(forms()) > 100


@pytest.mark.exhaustive
@pytest.mark.slow
def test_all_forms_of_attention() -> None:
    assert check(standard_forms()) >= 700
