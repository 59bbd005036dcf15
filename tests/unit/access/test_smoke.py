from gateway.access.bound import bound
from gateway.access.decision import Deny, Permit, Request, decide
from gateway.access.facts import ResourceFacts
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.access.scopes import parse

def test_it():
    g=Grant(token_id="t",client_id="c",client_kind="app",user="Practitioner/1",role="clinician",scopes=parse("user/*.rs"),patient=None,purpose="TREAT",grantees=("Practitioner/1",),expires_ms=10)
    f=ResourceFacts(type="Observation",id="1",home_patients=("Patient/1",),author_client="f",author_user=None)
    r=Request(interaction="r",stored=f,chain_fresh=True)
    assert isinstance(decide(r,g,[],1),Deny)
    p=Provision(id="c/0",patient="Patient/1",grantee="Practitioner/1",permit=True,state="final")
    assert decide(r,g,[p],1)==Permit("grant",("c/0",))
