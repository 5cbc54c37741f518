"""The line that makes a server join: one command for a shell, which needs nothing but Python 3 on that server.

It asks the authority for its CA and compares that with the pin, fetches the one-file agent over TLS under this CA,
compares its SHA-256, and runs it. What is installed already is not fetched again. The token stands in the environment,
which other users of a server can't read.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from drengine.config import Address
from drengine.enrolment.joining import TOKEN_VARIABLE

SCRIPT = ";".join(
    (
        "import hashlib,json,os,re,ssl,subprocess,sys,tempfile",
        "from http.client import HTTPSConnection",
        "at,pin,want,*rest=sys.argv[1:]",
        # No traceback: what fails from here on is one line.
        'failed="error: no agent from %s: %s [fetch-failed]"',
        "sys.excepthook=lambda kind,error,trace:print(failed % (at,error),file=sys.stderr)",
        "sha=lambda data:hashlib.sha256(data).hexdigest()",
        "link=lambda tls:HTTPSConnection(at,context=tls,timeout=60)",
        'get=lambda link,path:[link.request("GET",path),link.getresponse().read()][1]',
        # What this server has already: a package's agent, or the one that is wanted.
        'usual=["/usr/bin/drengine-agent","/usr/local/lib/drengine/drengine-agent"]',
        "there=[path for path in usual if os.path.exists(path)]",
        'ours=[path for path in there if path==usual[0] or sha(open(path,"rb").read())==want]',
        # The CA that has this pin, asked of whoever answers; then the file, of nobody who is not under that CA.
        'pem="-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----"',
        "anybody=ssl._create_unverified_context()",
        'told=ours or re.findall(pem,json.loads(get(link(anybody),"/v1/ca"))["ca"],re.S)',
        "cas=ours or [ca for ca in told if sha(ssl.PEM_cert_to_DER_cert(ca))==pin]",
        'cas or sys.exit("error: %s has another CA than this line names [pin-mismatch]" % at)',
        "tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)",
        "ours or tls.load_verify_locations(cadata=cas[0])",
        'agent=b"" if ours else get(link(tls),"/agent")',
        "fits=ours or sha(agent)==want",
        'fits or sys.exit("error: %s hands out another agent now: print this line anew [agent-other]" % at)',
        "folder=tempfile.TemporaryDirectory()",
        'path=ours[0] if ours else folder.name+"/drengine-agent"',
        'ours or open(path,"wb").write(agent)',
        'sys.exit(subprocess.call(["sh",path]+rest))',
    )
)
"""For Python 3.6 and later: the agent then looks for the Python that it needs. Simple quotes are the shell's."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a server is told.

    Attributes:
        authority: where the agent is fetched, and where this server enrols.
        pin: SHA-256 of the CA's certificate, in hexadecimal.
        sha256: of the one-file agent, in hexadecimal.
        words: what the agent is told.
        token: empty for a server that has enrolled.
    """

    authority: Address
    pin: str
    sha256: str
    words: Sequence[str]
    token: str = ""

    def __str__(self) -> str:
        words = ["python3", "-I", "-c", SCRIPT, str(self.authority), self.pin, self.sha256]
        line = shlex.join([*words, *self.words])
        return f"{TOKEN_VARIABLE}={self.token} {line}" if self.token else line
