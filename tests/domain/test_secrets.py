from pathlib import Path

import pytest

from domain.errors import Invalid, UnknownSecret
from domain.secrets import Secrets
from settings import Settings, load_secrets


def test_a_secret_is_had_by_name_and_never_shown() -> None:
    secrets = Secrets({"crm": "whsec_c2VjcmV0"})

    assert (secrets.get("crm"), secrets.names) == ("whsec_c2VjcmV0", ("crm",))
    assert repr(secrets) == f"{secrets}" == "Secrets(crm)"
    with pytest.raises(UnknownSecret, match="'mail'") as raised:
        secrets.get("mail")
    assert "c2VjcmV0" not in str(raised.value)


def test_the_operator_names_variables(tmp_path: Path) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text("[secrets]\ncrm = { env = 'CRM_KEY' }\n[secrets.mail]\nenv = 'MAIL_KEY'\n")
    file = Settings(config=path).file()

    secrets = load_secrets(file, {"CRM_KEY": "a", "MAIL_KEY": "b"}.get)
    assert (secrets.names, secrets.get("mail")) == (("crm", "mail"), "b")
    with pytest.raises(Invalid, match=r"secrets\.mail: the variable MAIL_KEY is not set"):
        load_secrets(file, {"CRM_KEY": "a"}.get)


@pytest.mark.parametrize(
    "fault", ["crm = 'whsec_c2VjcmV0'", "crm = { value = 'whsec_c2VjcmV0' }", "crm = { env = 'whsec c2VjcmV0' }"]
)
def test_the_secret_itself_has_no_place_in_the_file_and_is_not_repeated(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text(f"[secrets]\n{fault}\n")
    with pytest.raises(Invalid, match=r"secrets\.crm") as raised:
        Settings(config=path).file()
    assert "c2VjcmV0" not in str(raised.value)
