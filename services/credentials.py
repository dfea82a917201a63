"""Settings -> how links over a broker prove who they are."""

from __future__ import annotations

from pathlib import Path

from services.errors import ConfigurationError
from services.settings import KafkaSettings, RedisSettings
from services.transports.kafka_security import KafkaSecurity
from services.transports.redis_security import RedisSecurity


def kafka_security(settings: KafkaSettings) -> KafkaSecurity:
    """How links over Kafka prove who they are. Raises `ConfigurationError`."""
    return KafkaSecurity(
        settings.kafka_protocol,
        settings.kafka_mechanism,
        settings.kafka_user,
        _password("kafka", settings.kafka_password, settings.kafka_password_file),
        settings.kafka_ca_file,
        settings.kafka_certificate_file,
        settings.kafka_key_file,
        settings.kafka_key_password,
    )


def redis_security(settings: RedisSettings) -> RedisSecurity:
    """How links over Redis prove who they are. Raises `ConfigurationError`."""
    return RedisSecurity(
        settings.redis_tls == "on",
        settings.redis_user,
        _password("redis", settings.redis_password, settings.redis_password_file),
        settings.redis_ca_file,
        settings.redis_certificate_file,
        settings.redis_key_file,
        settings.redis_key_password,
    )


def _password(broker: str, given: str, file: str) -> str:
    """Given, or in a file. Raises `ConfigurationError`."""
    if not file:
        return given
    if given:
        raise ConfigurationError(
            f"BEYOND_{broker.upper()}_PASSWORD and --{broker}-password-file are both set; unset one of them"
        )
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"--{broker}-password-file {file}: {reason}") from None
