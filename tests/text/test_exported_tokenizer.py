"""What `tokenizer_files` writes opens in transformers 4.57.6 and gives our ids."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Pipeline

from nezha_ds.text.tokenizer import Tokenizer, tokenizer_files
from nezha_ds.text.vocab import Vocabulary

TEXTS = [
    *("天[MASK]大势，分久必合。", "BERT模型 playing İstanbul ΟΔΥΣΣΕΥΣ é 2021年", "\U00020000\U0001f600中\u200b国"),
    *("a" * 101, "字" * 600, "", "[SEP]甲[CLS]乙[UNK][PAD]", "Ｆｕｌｌ　ｗｉｄｔｈ①½"),
]
SCRIPT = """
import json, sys
from transformers import AutoTokenizer, BertTokenizerFast
folder, texts = sys.argv[1], json.loads(sys.argv[2])
auto = AutoTokenizer.from_pretrained(folder)
assert type(auto) is BertTokenizerFast is type(BertTokenizerFast.from_pretrained(folder)), type(auto)
slow = AutoTokenizer.from_pretrained(folder, use_fast=False)
assert [slow.do_lower_case, auto.do_lower_case] == [json.loads(sys.argv[3])] * 2
print(json.dumps({
    "ids": auto(texts, add_special_tokens=False)["input_ids"],
    "pair": auto("甲乙", "丙", return_token_type_ids=True)["token_type_ids"],
    "cut": len(auto("字" * 600, truncation=True)["input_ids"]),
    "special": auto.convert_tokens_to_ids([
        auto.pad_token, auto.unk_token, auto.cls_token, auto.sep_token, auto.mask_token]),
}))
"""


@pytest.fixture
def exported(vocabulary: Vocabulary, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for name, data in tokenizer_files(vocabulary, request.param, max_length=512).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.oracle
@pytest.mark.parametrize(("exported", "lowercase"), [(True, True), (False, False)], indirect=["exported"])
def test_transformers_opens_it(transformers: Path, vocabulary: Vocabulary, exported: Path, lowercase: bool) -> None:
    command = [str(transformers), "-c", SCRIPT, str(exported), json.dumps(TEXTS), json.dumps(lowercase)]
    environment = {"HF_HUB_OFFLINE": "1", "USE_TORCH": "0", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours = Tokenizer(vocabulary, lowercase)
    assert found["ids"] == [ours.encode_with_special(text).ids.tolist() for text in TEXTS]
    assert found["pair"] == [0, 0, 0, 0, 1, 1]
    assert found["cut"] == 512
    assert found["special"] == list(vocabulary.special_ids)


def test_files_hold_the_vocabulary_and_the_pipeline(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    files = tokenizer_files(vocabulary, lowercase=True, max_length=128)
    assert files["vocab.txt"] == vocabulary.data
    assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 128
    pipeline = Pipeline.from_str(files["tokenizer.json"].decode())
    inner = tokenizer.encode_with_special("天[MASK]大势").ids.tolist()
    assert pipeline.encode("天[MASK]大势").ids == [vocabulary.cls_id, *inner, vocabulary.sep_id]
