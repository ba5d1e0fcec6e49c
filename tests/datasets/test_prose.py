from pydoc_data.topics import topics

import numpy as np

from jaxkit import datasets


def paragraphs(text):
    return {" ".join(p.split()) for p in text.split("\n\n") if len(" ".join(p.split())) >= 60}


def test_prose_is_split_about_ninety_to_ten_and_repeats():
    split, again = datasets.embedded_prose(), datasets.embedded_prose()
    share = len(split.validation) / (len(split.train) + len(split.validation))
    assert 0.08 < share <= 0.1
    assert len(split.train) > 400_000
    assert split.train.fingerprint == again.train.fingerprint
    assert split.validation.fingerprint == again.validation.fingerprint


def test_every_topic_is_whole_on_exactly_one_side():
    split = datasets.embedded_prose()
    train, validation = split.train.text(), split.validation.text()
    for text in topics.values():
        assert (text.strip("\n") in train) != (text.strip("\n") in validation)


def test_no_long_paragraph_is_on_both_sides_although_topics_quote_each_other():
    split = datasets.embedded_prose()
    assert not paragraphs(split.train.text()) & paragraphs(split.validation.text())
    every = [p for text in topics.values() for p in paragraphs(text)]
    assert len(every) > len(set(every)) + 100


def test_a_character_bigram_of_the_training_text_predicts_validation_at_over_two_nats():
    # The yardstick of the language model that is trained on this text.
    split = datasets.embedded_prose()
    train, validation = split.train.data, split.validation.data
    counts = np.full((256, 256), 0.1)
    np.add.at(counts, (train[:-1], train[1:]), 1)
    log_p = np.log(counts / counts.sum(1, keepdims=True))
    assert 2.1 < -log_p[validation[:-1], validation[1:]].mean() < 2.5
