"""What a run folder must not tell those who may read it."""

from colearn_hpc.cli.fit import without_secrets


def test_keys_and_tokens_are_left_out_of_the_configuration():
    config = {
        "trainer": {"logger": [{"class_path": "WandbLogger", "init_args": {"project": "p", "api_key": "sk-1"}}]},
        "data": {"token": "t", "tokenizer": "words", "password": None, "aws_secret": "x"},
    }
    told = without_secrets(config)
    assert "sk-1" not in str(told) and told["trainer"]["logger"][0]["init_args"]["project"] == "p"
    assert told["data"]["tokenizer"] == "words" and told["data"]["password"] is None
    assert told["data"]["token"] == told["data"]["aws_secret"] == "(left out: give it by the environment)"
