"""What secures a link over Redis: what fits together, where secrets come from, and where they never are."""

from __future__ import annotations

from pathlib import Path

import pytest

from services import transports
from services.credentials import redis_security
from services.errors import ConfigurationError
from services.settings import InferenceSettings, PreprocessSettings, RedisSettings, parse
from services.transports.redis_security import RedisSecurity

SECRET = "hunter2"  # noqa: S105 # of nothing


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"user": "me"}, "BEYOND_REDIS_PASSWORD"),
        ({"ca_file": "ca.crt"}, "--redis-tls on"),
        ({"tls": True, "key_file": "tls.key"}, "needs both files"),
        ({"tls": True, "certificate_file": "tls.crt"}, "needs both files"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_remedy(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RedisSecurity(**given)  # type: ignore[arg-type]


def test_files_are_read_when_a_link_is_opened_and_before_anything_is_asked(tmp_path: Path) -> None:
    nonsense = tmp_path / "ca.crt"
    nonsense.write_text("nonsense")
    for path, words in ((tmp_path / "none.crt", "cannot be read"), (nonsense, "is not a certificate authority")):
        for opener in (transports.connect, transports.listen):
            with pytest.raises(ConfigurationError, match=words):
                opener("redis://127.0.0.1:1/work", redis=RedisSecurity(tls=True, ca_file=str(path)))


@pytest.mark.parametrize("settings", [PreprocessSettings, InferenceSettings])
def test_a_service_takes_it_from_flags_and_its_secrets_from_the_environment(
    settings: type[PreprocessSettings | InferenceSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"BEYOND_REDIS_PASSWORD": SECRET, "BEYOND_REDIS_TLS": "on"}
    parsed = parse(settings, "", ["--redis-user", "me", "--redis-ca-file", "ca.crt"], environment)
    assert redis_security(parsed.redis) == RedisSecurity(True, "me", SECRET, "ca.crt")
    assert SECRET not in repr(parsed)
    assert SECRET not in repr(redis_security(parsed.redis))
    with pytest.raises(SystemExit):
        parse(settings, "", ["--redis-password", SECRET], {})


def test_a_password_may_be_in_a_file_and_then_only_there(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    assert redis_security(RedisSettings(redis_password_file=str(file))).password == SECRET
    with pytest.raises(ConfigurationError, match="both set"):
        redis_security(RedisSettings(redis_password=SECRET, redis_password_file=str(file)))
    with pytest.raises(ConfigurationError, match=r"--redis-password-file .*No such file"):
        redis_security(RedisSettings(redis_password_file=str(tmp_path / "none")))
