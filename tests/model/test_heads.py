from dataclasses import replace

import torch
import torch.nn.functional as F

from tests.model.samples import lively_model, random_batch, small_config


def test_predicted_positions_get_what_the_whole_sequence_would_get():
    model, batch = lively_model(small_config()), random_batch([30, 11])
    hidden = model.encoder(batch.input_ids, batch.token_type_ids, batch.lengths)
    head, words = model.mlm, model.encoder.embeddings.words.weight
    everywhere = F.linear(head.norm(F.gelu(head.dense(hidden))), words, head.bias)
    expected = everywhere[torch.arange(2)[:, None], batch.mlm_positions]
    torch.testing.assert_close(model(batch).mlm_logits, expected, atol=1e-6, rtol=1e-6)


def test_pairs_are_judged_where_the_batch_has_labels_for_them():
    model = lively_model(small_config())
    assert model(random_batch([9, 5])).nsp_logits.shape == (2, 2)
    assert model(random_batch([9, 5], pairs=False)).nsp_logits is None


def test_the_order_of_segments_has_a_head_of_its_own():
    """Scores from the same summary as next sentences, where the config names a head and the batch has labels."""
    model, batch = lively_model(small_config(sentence_order=True)), random_batch([9, 5], pairs=False)
    assert model(batch).sop_logits is None
    batch = replace(batch, sentence_order_labels=torch.tensor([0, 1]))
    pooled = model.encoder.pool(model.encoder(batch.input_ids, batch.token_type_ids, batch.lengths))
    torch.testing.assert_close(model(batch).sop_logits, F.linear(pooled, model.sop.weight, model.sop.bias))
    assert model(batch).nsp_logits is None
    assert lively_model(small_config())(batch).sop_logits is None


def test_the_decoder_is_the_word_embeddings():
    model, batch = lively_model(small_config()), random_batch([9, 5])
    before = model(batch).mlm_logits
    with torch.no_grad():
        # Word 70 is not among the inputs, so only its score can change.
        batch.input_ids[batch.input_ids == 70] = 1
        before = model(batch).mlm_logits
        model.encoder.embeddings.words.weight[70] += 1
    changed = (model(batch).mlm_logits != before).flatten(0, 1).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [70]
