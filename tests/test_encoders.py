"""Text encoders: real networks of tiny size, built from configs and read from folders without a network; hashed words."""

import json
import re
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from libs import encoders

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["a large red lesion", "", "a small brown lesion on red skin", "a"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fails a test that tries to reach a network, also where the attempt's error is caught."""
    tried = []

    def refuse(*address, **_):
        tried.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield tried
    assert not tried


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name of an encoder: a save_pretrained folder}, weights random, tokens are letters and a few words."""
    import transformers
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lesion", "red", "skin", *LETTERS]
    vocabulary += [f"##{c}" for c in LETTERS]
    tokenizer = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)})
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, **small)
    bert = transformers.BertForMaskedLM(config)  # a checkpoint with a head and without a pooler, as published ones are
    bert.save_pretrained(root / "hf")
    tokenizer.save_pretrained(root / "hf")

    vocabulary = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    tokenizer = transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[])
    transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), max_position_embeddings=40, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        **small)).save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")

    tokenizer = transformers.T5Tokenizer(vocab=[("<pad>", 0.), ("</s>", 0.), ("<unk>", 0.), ("▁", -2.),
                                                *((c, -3.) for c in LETTERS)], extra_ids=0)
    transformers.T5EncoderModel(transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)).save_pretrained(
            root / "t5" / "text_encoder")  # as in a pipeline of diffusers
    tokenizer.save_pretrained(root / "t5" / "tokenizer")

    shutil.copytree(root / "hf", root / "sentence" / "0_Transformer")
    kind = "sentence_transformers.models."
    (root / "sentence" / "modules.json").write_text(json.dumps(
        [{"idx": 0, "name": "0", "path": "0_Transformer", "type": f"{kind}Transformer"},
         {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"}]))
    (root / "sentence" / "0_Transformer" / "sentence_bert_config.json").write_text(
        '{"max_seq_length": 36, "do_lower_case": true}')

    shutil.copytree(root / "hf", root / "openclip", ignore=shutil.ignore_patterns("model.safetensors"))
    (root / "openclip" / "open_clip_config.json").write_text(json.dumps(
        {"model_cfg": {"embed_dim": 8, "text_cfg": {"hf_model_name": "owner/some-bert", "context_length": 256}}}))
    weights = {f"text.transformer.{name.removeprefix('bert.')}": value for name, value in bert.state_dict().items()
               if name.startswith("bert.")}
    save_file(weights | {"text.proj.0.weight": torch.zeros(2, 2), "visual.trunk.cls_token": torch.zeros(2)},
              root / "openclip" / "open_clip_model.safetensors")
    return {path.name: path for path in root.iterdir()}


OPTIONS = {"words": {"name": "words", "max_length": 36, "dim": 16},
           "clip": {"name": "clip", "max_length": 36},
           "hf": {"name": "hf", "max_length": 36},
           "openclip": {"name": "hf", "max_length": 36},
           "t5": {"name": "t5", "max_length": 36, "subfolder": "text_encoder"},
           "sentence": {"name": "sentence"}}


@pytest.fixture
def build(folders):
    """build('clip', max_length=4) -> that encoder with these options."""
    return lambda kind, **changes: encoders.get(**OPTIONS[kind], **changes) if kind == "words" else encoders.get(
        **{"path": str(folders[kind]), **OPTIONS[kind], **changes})


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_encoder(build, kind):
    encoder = build(kind)
    assert encoder.shape == (36, 16) and not encoder.train().training
    assert not any(weight.requires_grad for weight in encoder.parameters())
    states, mask = encoder.encode(TEXTS), encoder.mask(TEXTS)
    assert states.shape == (4, 36, 16) and states.dtype == torch.float32
    assert not states.requires_grad and states.isfinite().all()
    assert mask.shape == (4, 36) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == encoder.lengths(TEXTS) and mask.any(1).all()
    assert (mask[:, 1:] <= mask[:, :-1]).all(), "tokens come first, then padding"
    assert torch.equal(encoder.empty, encoder.encode([""])[0]) and encoder.empty.shape == encoder.shape
    for i, text in enumerate(TEXTS):
        alone = encoder.encode([text])[0]
        assert (alone - states[i]).abs().max() < 1e-5, "a text's states depend on nothing else"
    assert (states[0] - states[2]).abs().max() > 1e-2 and (states[1] - states[3]).abs().max() > 1e-2
    assert encoder.encode([]).shape == (0, 36, 16) and encoder.mask([]).shape == (0, 36) and encoder.lengths([]) == []
    for call in (encoder.encode, encoder.mask, encoder.lengths, encoder.cut):
        with pytest.raises(ValueError, match="put it in a list"):
            call("a lesion")
    with pytest.raises(ValueError, match="1 of 2 are none, such as None"):
        encoder.encode(["a", None])
    assert encoder.to("meta").mask(["a"]).device.type == "meta", "results are where the encoder is"
    assert kind != "words" or encoder.encode(["a"]).device.type == "meta"


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_cut_is_reported(build, kind):
    encoder = build(kind, max_length=8) if kind != "words" else encoders.get(name="words", max_length=5, dim=4)
    window = encoder.shape[0]
    assert encoder.cut(["a", "", "red"]) == "" == encoder.cut([])
    texts = ["red", "a large red lesion on the skin", "a red and brown lesion on skin"]
    lengths = encoder.lengths(texts)
    longest = max(range(3), key=lengths.__getitem__)
    said = encoder.cut(texts)
    assert said.startswith(f"2 of 3 texts exceed the window of {window} tokens; the longest needs {lengths[longest]}: ")
    quoted = re.findall("'(.*?)'", said)
    assert quoted[0] == texts[longest] and texts[longest].endswith(quoted[1])
    assert 0 < len(quoted[1]) < len(texts[longest])
    kept = texts[longest].removesuffix(quoted[1])
    torch.testing.assert_close(encoder.encode([kept]), encoder.encode([texts[longest]]), rtol=0, atol=1e-5)
    assert encoder.lengths([kept])[0] == window, "what is kept fills the window"
    assert len(encoder.cut(["lesion " * 300])) < 600


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_fingerprint_tells_what_decides_the_states(build, folders, kind, tmp_path):
    encoder = build(kind)
    before = encoder.fingerprint
    assert int(before, 16)
    encoder.cut(TEXTS), encoder.encode(TEXTS)  # the last leaves a tokenizer that pads and truncates
    assert encoder.fingerprint == before, "using it changes nothing"
    if kind == "words":
        others = [encoders.get(**OPTIONS["words"] | change) for change in ({"seed": 1}, {"dim": 8}, {"max_length": 20})]
    else:
        moved = tmp_path / "elsewhere"
        shutil.copytree(folders[kind], moved)
        assert build(kind, path=str(moved)).fingerprint == before
        others = [build(kind, max_length=20), build(kind, dtype="bfloat16")]
        with torch.no_grad():
            next(encoder.net.parameters()).view(-1)[0] += 1
        others.append(encoder)
        retold = build(kind)
        retold.tokenizer.add_tokens(["melanoma"])
        others.append(retold)
    assert len({before, *(other.fingerprint for other in others)}) == len(others) + 1


def test_states_are_those_of_transformers(build, folders):
    """U-ViT's FrozenCLIPEmbedder gives input_ids alone; PixArt and BERT mask the padding."""
    import transformers
    for kind, architecture, keys in (("clip", "CLIPTextModel", ("input_ids",)),
                                     ("hf", "BertModel", ("input_ids", "attention_mask", "token_type_ids")),
                                     ("t5", "T5EncoderModel", ("input_ids", "attention_mask"))):
        net_folder, tokens_folder = ((folders["t5"] / "text_encoder", folders["t5"] / "tokenizer") if kind == "t5" else
                                     (folders[kind], folders[kind]))
        net = getattr(transformers, architecture).from_pretrained(net_folder, dtype=torch.float32, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokens_folder, local_files_only=True)
        tokens = tokenizer(TEXTS, truncation=True, max_length=36, padding="max_length", return_tensors="pt")
        with torch.no_grad():
            expected = net.eval()(**{key: tokens[key] for key in keys}).last_hidden_state
        torch.testing.assert_close(build(kind).encode(TEXTS), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["hf", "t5"])
def test_padding_is_not_attended_to(build, kind):
    """The states of the tokens are the same in a wider window."""
    narrow, wide = build(kind, max_length=30), build(kind, max_length=36)
    n = narrow.lengths(TEXTS[:1])[0]
    torch.testing.assert_close(narrow.encode(TEXTS[:1])[:, :n], wide.encode(TEXTS[:1])[:, :n], rtol=0, atol=1e-5)


def test_t5_may_leave_no_trace_of_padding(build):
    """States of padding are 0, those of tokens as ever; what asks for it has a fingerprint of its own."""
    plain, zeroed = build("t5"), build("t5", zero_padding=True)
    mask = plain.mask(TEXTS)
    assert torch.equal(zeroed.encode(TEXTS), plain.encode(TEXTS) * mask[..., None])
    assert torch.equal((zeroed.encode(TEXTS) != 0).any(-1), mask) and (plain.encode(TEXTS) != 0).any(-1).all()
    lower = build("t5", lower_case=True)
    assert torch.equal(lower.encode(["A RED"]), plain.encode(["a red"]))
    assert not torch.equal(plain.encode(["A RED"]), plain.encode(["a red"]))
    assert len({each.fingerprint for each in (plain, zeroed, lower)}) == 3


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """The tokenizer of a published T5: a file of sentencepiece and no tokenizer.json."""
    import io

    import sentencepiece
    folder, model = tmp_path_factory.mktemp("spiece") / "tokenizer", io.BytesIO()
    text = ["a red lesion of the skin", "an image with a large polyp", "normal tissue and a small lesion"] * 20
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=model, vocab_size=60, pad_id=0, eos_id=1,
                                             unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
    folder.mkdir()
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512, "eos_token": "</s>", "pad_token": "<pad>",
         "unk_token": "<unk>", "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]}))
    return folder


def test_published_t5_tokenizers_are_read(spiece):
    """As sentencepiece itself reads them; the empty text is the end alone, and what exceeds the window is told."""
    import sentencepiece
    tokens = encoders.get(name="tokens", path=str(spiece.parent), subfolder="tokenizer", max_length=120)
    published = sentencepiece.SentencePieceProcessor(model_file=str(spiece / "spiece.model"))
    texts = ["a red lesion", "a large, \ufb01ne tissue with  two spaces", "Unknown \u6f22", ""]
    for text, numbers in zip(texts, tokens.encode(texts).tolist()):
        expected = [*published.encode(text), 1]
        assert numbers == expected + [0] * (120 - len(expected))
    assert tokens.cut(texts) == "" and "1 of 2 texts exceed the window of 120" in tokens.cut(["a lesion", "normal tissue " * 70])


def test_what_published_t5_tokenizers_need_is_said(spiece, monkeypatch):
    from libs.encoders import pretrained
    found = pretrained.importlib.util.find_spec
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else found(name))
    with pytest.raises(ValueError, match="spiece.model: pip install sentencepiece"):
        encoders.get(name="tokens", path=str(spiece), max_length=12)


def test_a_text_tower_of_openclip_is_its_transformer(build, folders, tmp_path, monkeypatch):
    torch.testing.assert_close(build("openclip").encode(TEXTS), build("hf").encode(TEXTS), rtol=0, atol=1e-6)
    assert build("openclip").fingerprint == build("hf").fingerprint
    weights = load_file(folders["openclip"] / "open_clip_model.safetensors")

    def variant(name, without="", config=True):
        folder = tmp_path / name
        shutil.copytree(folders["openclip"], folder, ignore=shutil.ignore_patterns(
            "*.safetensors", *([] if config else ["config.json"])))
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items() if not without or
                                               without not in key}}, folder / "open_clip_pytorch_model.bin")
        return str(folder)

    trained = build("openclip", path=variant("trained"))
    assert trained.fingerprint == build("hf").fingerprint
    assert build("openclip", dtype="bfloat16").net.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="lacks weights of its BertModel: encoder.layer.1.attention.output.LayerNorm.bias"):
        build("openclip", path=variant("short", without="layer.1."))
    with pytest.raises(OSError, match=r"config.json is missing.*put that of owner/some-bert there\): give a local folder"):
        build("openclip", path=variant("bare", config=False))
    config = folders["openclip"] / "config.json"
    with monkeypatch.context() as patch:  # an earlier download of the network that the tower is built as
        patch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(config.with_name(file)))
        assert build("openclip", path=str(tmp_path / "bare")).fingerprint == build("hf").fingerprint
    folder = tmp_path / "none"
    shutil.copytree(folders["openclip"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(OSError, match="neither open_clip_model.safetensors nor open_clip_pytorch_model.bin is there"):
        build("openclip", path=str(folder))
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # a pickle that calls
    with pytest.raises(ValueError, match=f"no text encoder could be loaded from {folder}"):
        build("openclip", path=str(folder))
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"text_cfg": {"width": 512}}}')
    with pytest.raises(ValueError, match="none of transformers; encoder.name=clip"):
        build("openclip", path=str(folder))


def test_sentence_encoders_say_their_own_window(build, folders):
    encoder = build("sentence")
    assert encoder.shape[0] == 36 and build("sentence", max_length=12).shape[0] == 12
    torch.testing.assert_close(encoder.encode(TEXTS), build("hf").encode(TEXTS), rtol=0, atol=1e-6)
    assert torch.equal(encoder.encode(["A RED"]), encoder.encode(["a red"]))
    with pytest.raises(ValueError, match="no sentence-transformers model.*names 0; encoder.name=hf"):
        encoders.get(name="sentence", path=str(folders["hf"]))


def test_precision(build):
    whole = build("hf").encode(TEXTS)
    half = build("hf", dtype="bfloat16")
    assert half.net.dtype == torch.bfloat16 and half.encode(TEXTS).dtype == torch.float32
    assert 0 < (half.encode(TEXTS) - whole).abs().max() < .1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(build("hf").encode(TEXTS), whole), "stored states do not depend on the precision of a run"
    with pytest.raises(ValueError, match="encoder.dtype='half'"):
        build("hf", dtype="half")


def test_what_cannot_be_an_encoder(build, folders, tmp_path):
    import transformers
    with pytest.raises(ValueError, match="unknown encoder 'sentences'; known: .*did you mean 'sentence'"):
        encoders.get(name="sentences")
    with pytest.raises(ValueError, match="encoder.path is missing"):
        encoders.get(name="clip", path="")
    with pytest.raises(FileNotFoundError, match="no folder ./none: give a local folder or a hub name that this machine"):
        encoders.get(name="clip", path="./none")
    for kind, window, limit in (("clip", 41, 40), ("hf", 41, 40), ("hf", 1, 40)):
        with pytest.raises(ValueError, match=f"encoder.max_length={window}: expected 2 .. {limit}"):
            build(kind, max_length=window)

    def variant(name, *missing):
        shutil.copytree(folders["hf"], tmp_path / name, ignore=shutil.ignore_patterns(*missing))
        return tmp_path / name

    with pytest.raises(ValueError, match="mute holds no tokenizer"):
        build("hf", path=str(variant("mute", "token*")))
    with pytest.raises(OSError, match=r"loaded from .*bare \(.*\): give a local folder"):
        build("hf", path=str(variant("bare", "*.safetensors")))
    folder = variant("short")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layer.0" not in name}, folder / "model.safetensors",
              metadata={"format": "pt"})
    with pytest.raises(ValueError, match="short lacks weights of its BertModel: .* more"):
        build("hf", path=str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises((OSError, ValueError), match="no text encoder could be loaded from .*short"):
        build("hf", path=str(folder))
    folder = variant("foreign", "token*")
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(100))])}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    with pytest.raises(ValueError, match="its tokenizer knows 105 tokens, but its network 60"):
        build("hf", path=str(folder))
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    folder = variant("clip", "*.safetensors", "config.json")
    config = transformers.CLIPConfig(text_config=dict(vocab_size=60, **small),
                                     vision_config=dict(image_size=8, patch_size=4, **small))
    transformers.CLIPModel(config).save_pretrained(folder)
    with pytest.raises(ValueError, match="clip holds clip, which is more than a text encoder: use encoder.name=clip"):
        build("hf", path=str(folder))
    folder = variant("pair", "*.safetensors", "config.json")
    transformers.T5Model(transformers.T5Config(vocab_size=60, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
                         ).save_pretrained(folder)
    with pytest.raises(ValueError, match="an encoder with a decoder: encoder.name=t5"):
        build("hf", path=str(folder))


def test_code_that_comes_with_weights_is_not_run(build, folders, tmp_path):
    folder, trace = tmp_path / "own_code", tmp_path / "trace"
    shutil.copytree(folders["hf"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": {
        "AutoConfig": "own.Config", "AutoModel": "own.Net"}}))
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    with pytest.raises(ValueError, match="no text encoder could be loaded from .*own_code"):
        build("hf", path=str(folder))
    assert not trace.exists()


def test_an_unreachable_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries again for minutes
    for kind in ("clip", "hf", "t5", "sentence"):
        with pytest.raises(OSError, match=r"loaded from owner/name \(.+\): give a local folder or a hub name that this "
                                          "machine can reach"):
            encoders.get(name=kind, path="owner/name")


GOLDEN = [[1.2998929, .8335614, -.2724773, 1.0081989], [.8512628, 1.6878622, -.0909877, .9481496], [0.] * 4, [0.] * 4]
GOLDEN_FINGERPRINT = "7c2b4197f3c176e5"


def test_words_are_the_same_on_every_machine():
    """Golden values: a network trained on these codes must find them again."""
    encoder = encoders.get(name="words", max_length=4, dim=4)
    states = encoder.encode(["Lesion"])[0]
    assert states.tolist() == [pytest.approx(row, abs=1e-5) for row in GOLDEN]
    assert encoder.fingerprint.startswith(GOLDEN_FINGERPRINT)


def test_words_are_words():
    encoder = encoders.get(name="words", max_length=6, dim=256)
    plain, same = encoder.encode(["a medium-sized naïve café", " A, MEDIUM-SIZED (naïve) cafe\u0301!"])
    assert torch.equal(plain, same) and encoder.lengths(["a medium-sized, 0.5 mm x_y"]) == [8]
    assert not torch.equal(plain, encoder.encode(["a medium sized naïve café"])[0])
    assert (encoder.encode(["a b"])[0, 3:] == 0).all() and encoder.lengths([""]) == [1]
    red, again = encoder.encode(["red red"])[0, 1:3]
    other = encoder.encode(["crimson"])[0, 1]
    cosine = torch.nn.functional.cosine_similarity
    assert .95 < cosine(red, again, 0) < 1 and abs(cosine(red, other, 0)) < .25
    many = encoder.encode([f"word{i}" for i in range(300)])[:, 1] - encoder.positions[1]
    assert abs(many.mean()) < .02 and abs(many.var() - 1) < .02
    for options in ({"dim": 5}, {"dim": 0}, {"max_length": 1}):
        with pytest.raises(ValueError, match=f"encoder.{next(iter(options))}="):
            encoders.get(name="words", **options)
