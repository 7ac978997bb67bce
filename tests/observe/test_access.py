"""Who gets the metrics and who does not: TLS, client certificates, tokens, passwords, and files that change."""

import asyncio
import base64
import hashlib
import hmac
import logging
import os
import socket
import ssl
import subprocess

import pytest

from nezha_ds import cli
from nezha_ds.config import load
from nezha_ds.errors import ConfigError, LaunchError
from nezha_ds.observe import access
from nezha_ds.observe.exporter import ExporterSettings, check_exporter
from nezha_ds.observe.passwords import DECOY, Hash, read_users, users_line
from nezha_ds.observe.request import Request
from nezha_ds.train.checks import check_recipe
from nezha_ds.train.recipe import Recipe
from tests.helpers.tls import authority, issue
from tests.observe.exporters import address, ask, exporting

TOKEN, PASSWORD = "0123456789abcdef", "correct horse 电池"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """An authority, what it signed, and a stranger that it did not."""
    folder = tmp_path_factory.mktemp("tls")
    signer, other = authority(folder), authority(folder, "other")
    pairs = {name: issue(folder, name, signer) for name in ("server", "renewed", "client")}
    return {"authority": signer, **pairs, "stranger": issue(folder, "stranger", other)}


@pytest.fixture
def files(tmp_path):
    """A token file and a users file; scrypt at a cost for tests."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "users").write_text(f"# who may\n\nprometheus:{cheap(PASSWORD)}\n")
    for name in ("token", "users"):
        (tmp_path / name).chmod(0o600)
    return {"token_file": tmp_path / "token", "users_file": tmp_path / "users"}


def cheap(password):
    salt = os.urandom(16)
    return Hash(4, 8, 1, salt, hashlib.scrypt(password.encode(), salt=salt, n=16, r=8, p=1, dklen=32))


def trusting(tls, client=None):
    context = ssl.create_default_context(cafile=str(tls["authority"].certificate))
    if client:
        context.load_cert_chain(tls[client].certificate, tls[client].key)
    return context


def server_of(tls, **more):
    return {"certificate": tls["server"].certificate, "key": tls["server"].key, **more}


def basic(name, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


# ------------------------------------------------------------------------------------------------- tokens, passwords


def test_a_token_opens_the_metrics_and_health_needs_none(tmp_path, files):
    with exporting(tmp_path, token_file=files["token_file"]) as exporter:
        assert ask(exporter, **BEARER)[0] == 200
        for wrong in ("", "Bearer", "Bearer ", f"Bearer {TOKEN}0", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN):
            assert ask(exporter, Authorization=wrong)[0] == 401
        assert ask(exporter) == (401, "Unauthorized\n")
        assert ask(exporter, "/healthz")[0] == 200
        assert ask(exporter, "/readyz")[0] == 503


def test_a_password_opens_them(tmp_path, files, monkeypatch):
    monkeypatch.setattr(access, "GUESS_SECONDS", 0.0)
    with exporting(tmp_path, users_file=files["users_file"]) as exporter:
        assert ask(exporter, **basic("prometheus", PASSWORD))[0] == 200
        for name, password in (("prometheus", "x"), ("prometheus", ""), ("nobody", PASSWORD), ("", PASSWORD)):
            assert ask(exporter, **basic(name, password))[0] == 401
        for wrong in ("Basic", "Basic !!!", "Basic /w==", "Bearer x"):
            assert ask(exporter, Authorization=wrong)[0] == 401


def test_either_is_enough_where_both_are_set(tmp_path, files):
    with exporting(tmp_path, **files) as exporter:
        assert [ask(exporter, **who)[0] for who in (BEARER, basic("prometheus", PASSWORD), {})] == [200, 200, 401]


def test_two_tokens_stand_while_one_replaces_the_other(tmp_path, files):
    path = files["token_file"]
    with exporting(tmp_path, token_file=path) as exporter:
        path.write_text(f"{TOKEN}\nnew\n")
        assert [ask(exporter, Authorization=f"Bearer {token}")[0] for token in (TOKEN, "new")] == [200, 200]
        path.write_text("new\n")
        assert [ask(exporter, Authorization=f"Bearer {token}")[0] for token in (TOKEN, "new")] == [401, 200]


def test_a_file_that_breaks_leaves_what_it_said_and_is_told_once(tmp_path, files, caplog):
    path = files["token_file"]
    with exporting(tmp_path, token_file=path) as exporter, caplog.at_level(logging.WARNING, "nezha_ds"):
        path.write_text("")
        assert [ask(exporter, **BEARER)[0] for _ in range(3)] == [200] * 3
        assert len(caplog.records) == 1 and f"{path} is empty" in caplog.text
        path.write_text("new")
        assert ask(exporter, **BEARER)[0] == 401


def checks(monkeypatch):
    """How often scrypt was computed."""
    made = []
    fits = Hash.fits
    monkeypatch.setattr(Hash, "fits", lambda self, password: made.append(password) or fits(self, password))
    return made


def test_a_right_password_is_hashed_once_and_forgotten_with_its_line(tmp_path, files, monkeypatch):
    monkeypatch.setattr(access, "GUESS_SECONDS", 0.0)
    made = checks(monkeypatch)
    with exporting(tmp_path, users_file=files["users_file"]) as exporter:
        assert [ask(exporter, **basic("prometheus", PASSWORD))[0] for _ in range(5)] == [200] * 5
        assert len(made) == 1
        assert [ask(exporter, **basic("prometheus", "guess"))[0] for _ in range(2)] == [401] * 2
        assert len(made) == 3
        files["users_file"].write_text(f"prometheus:{cheap('changed')}\n")
        assert ask(exporter, **basic("prometheus", PASSWORD))[0] == 401
        assert ask(exporter, **basic("prometheus", "changed"))[0] == 200
        # Nothing that is kept is the password, or a hash of it alone.
        kept = b"".join(exporter._parts[1]._passwords._right.values())
        assert b"changed" not in kept and hashlib.sha256(b"changed").digest() not in kept


def test_guesses_wait_for_each_other_and_a_user_who_is_known_does_not(files, monkeypatch):
    """100 guesses at once cost one check in `GUESS_SECONDS`, those who gave up included."""
    made = checks(monkeypatch)
    settings = ExporterSettings(users_file=files["users_file"])
    monkeypatch.setattr(access, "GUESS_SECONDS", 3600.0)

    async def attack():
        gate = access.Access(settings)
        right = Request("GET", "/metrics", {"authorization": basic("prometheus", PASSWORD)["Authorization"]})
        assert await gate.refusal(right, certified=False) is None
        guesses = [Request("GET", "/metrics", {"authorization": f"Basic {base64.b64encode(b'a:b').decode()}"})] * 100
        tasks = [asyncio.create_task(gate.refusal(guess, certified=False)) for guess in guesses]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert await gate.refusal(right, certified=False) is None
        for task in waiting:
            task.cancel()
        gate.close()
        return len(done)

    assert asyncio.run(attack()) == 1
    assert len(made) == 2


def test_who_does_not_exist_costs_the_same_check():
    assert users_line("a", "b").split("$")[2] == str(DECOY).split("$")[2] == "ln=15,r=8,p=3"


def test_the_secrets_are_compared_in_constant_time(tmp_path, files, monkeypatch):
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(len(one)) or one == other)
    with exporting(tmp_path, **files) as exporter:
        files["token_file"].write_text(f"other\n{TOKEN}\n")
        assert ask(exporter, **BEARER)[0] == 200
        assert compared == [5, 16]  # all tokens
        assert ask(exporter, **basic("prometheus", PASSWORD))[0] == 200
        assert compared[-1] == 32


# ----------------------------------------------------------------------------------------------------- the users file


def test_the_command_makes_the_line_that_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    with (tmp_path / "password").open() as given:
        monkeypatch.setattr("sys.stdin", given)
        assert cli.main(["hash-password", "grace"]) == 0
    (tmp_path / "users").write_text(capsys.readouterr().out)
    users = read_users(tmp_path / "users")
    assert list(users) == ["grace"]
    assert users["grace"].fits(PASSWORD.encode()) and not users["grace"].fits(b"x")


def test_the_format_is_the_one_that_others_read(tmp_path):
    """The example of passlib's documentation: scrypt.hash("password")."""
    known = "$scrypt$ln=16,r=8,p=1$aM15713r3Xsvxbi31lqr1Q$nFNh2CVHVjNldFVKDHDlm4CbdRSCdEBsjjJxD+iCs5E"
    found = read(tmp_path, f"a:{known}")["a"]
    assert found.fits(b"password") and str(found) == known


def read(folder, text):
    (folder / "users").write_text(text)
    return read_users(folder / "users")


GOOD = "$scrypt$ln=4,r=8,p=1$c2FsdHNhbHRzYWx0c2FsdA$" + "A" * 43


@pytest.mark.parametrize(
    "line",
    [
        "prometheus",
        "prometheus:password",
        "prometheus:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        f":{GOOD}",
        f" :{GOOD}",
        f"a:{GOOD.replace('ln=4', 'ln=99')}",  # 2^99 bytes and more
        f"a:{GOOD.replace('ln=4', 'ln=18')}",  # 256 MiB
        f"a:{GOOD.replace('ln=4', 'ln=0')}",
        f"a:{GOOD.replace('p=1', 'p=99')}",
        f"a:{GOOD.replace('c2Fs', 'c2F!')}",
    ],
)
def test_a_line_that_is_none_is_named_and_its_content_is_not(line, tmp_path):
    with pytest.raises(LaunchError, match=r"line 2 is not NAME:.*hash-password") as raised:
        read(tmp_path, f"good:{GOOD}\n{line}\n")
    assert "password:" not in str(raised.value) and "W6ph" not in str(raised.value)


def test_names_and_passwords_that_cannot_be_are_refused():
    for name, password in (("a:b", "x"), ("", "x"), ("a\nb", "x"), ("a", "")):
        with pytest.raises(ConfigError):
            users_line(name, password)


# ---------------------------------------------------------------------------------------------------------------- TLS


def test_over_tls_only_tls_is_spoken_and_only_new_versions(tmp_path, tls):
    with exporting(tmp_path, **server_of(tls)) as exporter:
        assert exporter.url.startswith("https://")
        assert ask(exporter, context=trusting(tls))[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(exporter, context=ssl.create_default_context())
        old = trusting(tls)
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.deprecated_call():
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            ask(exporter, context=old)


def test_mutual_tls_wants_a_client_that_the_authority_signed(tmp_path, tls, files):
    chosen = server_of(tls, client_ca=tls["authority"].certificate, token_file=files["token_file"])
    with exporting(tmp_path, **chosen) as exporter:
        assert ask(exporter, context=trusting(tls, "client"), **BEARER)[0] == 200
        # What is set is asked for: a certificate does not replace the token, nor the token a certificate.
        assert ask(exporter, context=trusting(tls, "client"))[0] == 401
        assert ask(exporter, context=trusting(tls), **BEARER) == (403, "a client certificate is needed\n")
        # A probe of Kubernetes has no certificate.
        assert ask(exporter, "/healthz", context=trusting(tls))[0] == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(exporter, context=trusting(tls, "stranger"), **BEARER)


def test_a_renewed_certificate_is_served_without_a_restart(tmp_path, tls, caplog):
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    put(tls["server"], certificate, key)

    def served():
        with trusting(tls).wrap_socket(connected(exporter), server_hostname="127.0.0.1") as client:
            return dict(field[0] for field in client.getpeercert()["subject"])["commonName"]

    with exporting(tmp_path, certificate=certificate, key=key) as exporter:
        assert served() == "server"
        certificate.write_bytes(tls["renewed"].certificate.read_bytes())
        assert served() == "server"  # half a renewal: the key is still the old one's
        assert "is not the key of" in caplog.text
        key.write_bytes(tls["renewed"].key.read_bytes())
        assert served() == "renewed"


def put(pair, certificate, key):
    certificate.write_bytes(pair.certificate.read_bytes())
    key.write_bytes(pair.key.read_bytes())


def connected(exporter):
    return socket.create_connection(address(exporter), timeout=600)


# ------------------------------------------------------------------------------------------------- before ranks meet


def refused(error, pattern, **chosen):
    with pytest.raises(error, match=pattern):
        check_exporter(ExporterSettings(**chosen))


def test_settings_that_contradict_each_other_are_refused(tls):
    refused(ConfigError, "certificate is set and exporter.key is not", certificate=tls["server"].certificate)
    refused(ConfigError, "key is set and exporter.certificate is not", key=tls["server"].key)
    refused(ConfigError, "client_ca is set and exporter.certificate", client_ca=tls["authority"].certificate)


def test_files_that_are_not_what_they_must_be_are_refused_by_name(tmp_path, tls, files):
    nothing, text = tmp_path / "nothing", tmp_path / "text"
    text.write_text("no PEM")
    for name in ("certificate", "key", "client_ca"):
        chosen = server_of(tls, client_ca=tls["authority"].certificate)
        refused(LaunchError, f"exporter.{name} {nothing} cannot be read .No such file", **chosen | {name: nothing})
        refused(LaunchError, f"exporter.{name} {text}|and exporter.{name} {text}", **chosen | {name: text})
    refused(LaunchError, "is not the key of", **server_of(tls, key=tls["client"].key))
    refused(LaunchError, f"token_file {nothing} cannot be read", token_file=nothing)
    refused(LaunchError, f"users_file {nothing} cannot be read", users_file=nothing)
    nothing.touch()
    refused(LaunchError, f"token_file {nothing} is empty.*openssl rand", token_file=nothing)
    refused(LaunchError, f"users_file {nothing} names no user.*hash-password", users_file=nothing)
    check_exporter(ExporterSettings(**server_of(tls, client_ca=tls["authority"].certificate), **files))
    check_exporter(ExporterSettings(enabled=False, token_file=nothing))


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path, tls):
    locked = tmp_path / "locked"
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", tls["server"].key, "-out", locked],
        check=True,
        capture_output=True,
    )
    refused(LaunchError, "the key without a password", **server_of(tls, key=locked))


def test_exposure_is_told_with_the_way_out(tls, files, caplog):
    def told(host="0.0.0.0", **chosen):
        caplog.clear()
        access.warn_of_exposure(ExporterSettings(**chosen), host)
        return caplog.text

    assert "anybody who reaches 0.0.0.0" in told() and "exporter.token_file" in told()
    assert "anybody who reaches ::" in told("::")
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert told(host) == ""
    assert told(**server_of(tls, client_ca=tls["authority"].certificate)) == ""
    assert "cross the network as they are" in told(**files)
    assert told(**server_of(tls), **files) == ""
    files["token_file"].chmod(0o644)
    assert f"{files['token_file']} is readable by everybody" in told("127.0.0.1", **files)


def test_a_recipe_with_a_wrong_key_is_refused_before_ranks_meet(tmp_path, tls):
    pair = {"certificate": tls["server"].certificate, "key": tls["client"].key}
    required = [f"run.folder={tmp_path}", f"data.shards={tmp_path}"]
    recipe = load(Recipe, overrides=[*required, *(f"exporter.{name}={path}" for name, path in pair.items())])
    with pytest.raises(LaunchError, match="is not the key of"):
        check_recipe(recipe)
