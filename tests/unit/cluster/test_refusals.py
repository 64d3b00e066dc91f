"""What a server refuses: told in its words with what to change, and tried again in time."""

from __future__ import annotations

import pytest
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.cluster.refusals import Refusals, is_refusal, told

INVALID = 'Deployment.apps "chat" is invalid: spec.template.spec.'
PLURAL = "could not find the requested resource"


@pytest.mark.parametrize(
    ("code", "words", "change"),
    [
        (
            422,
            f'{INVALID}containers[0].resources.requests: Invalid value: "4": must be less',
            "change spec.resources of the pool",
        ),
        (422, f"{INVALID}tolerations[0].effect: Unsupported value", "change spec.tolerations"),
        (422, f"{INVALID}nodeSelector: Invalid value: a label", "change spec.nodeSelector"),
        (422, f"{INVALID}priorityClassName: Invalid value", "change spec.priorityClassName"),
        (422, f"{INVALID}schedulerName: Invalid value", "change spec.schedulerName"),
        (
            500,
            "failed to create typed patch object (a/chat): .spec.template.spec.affinity.x: no",
            "change spec.affinity",
        ),
        (403, 'services "chat" is forbidden: exceeded quota: few, used: services=1', "raise the"),
        (403, 'admission webhook "p" denied the request: no label team', "what the policy asks"),
        (
            422,
            "deployments.apps \"chat\" is forbidden: ValidatingAdmissionPolicy 'team' with "
            "binding 'team' denied request: a label team",
            "what the policy asks for",
        ),
        (
            500,
            'Internal error occurred: failed calling webhook "p": dial tcp: refused',
            "bring that webhook back",
        ),
        (403, 'User "x" cannot patch resource "deployments" in API group "apps"', "rights of its"),
        (403, "unable to create in a because it is being terminated", "in another"),
        (404, f"the server {PLURAL}", "does not have that kind"),
        (422, "something else", "change what it names"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words_with_what_to_change(
    code: int, words: str, change: str
) -> None:
    failure = ApiFailure(code, f"{code}: {words}")
    assert is_refusal(failure)
    problem = told(failure, "Deployment chat")
    assert problem.message.startswith(f"Deployment chat is left as it was: {words[:60]}")
    assert change in problem.message


@pytest.mark.parametrize("code", [0, 401, 409, 429, 500, 503, 504])
def test_a_server_that_has_trouble_of_its_own_has_refused_nothing(code: int) -> None:
    assert not is_refusal(ApiFailure(code, f"{code}: etcd has no leader"))


def test_a_webhook_that_is_down_comes_back_by_itself_and_a_wrong_field_does_not() -> None:
    down = ApiFailure(500, '500: failed calling webhook "p": refused')
    wrong = ApiFailure(422, "422: nodeSelector")
    assert (told(down, "d").reason, told(down, "d").stalled) == ("WebhookFails", False)
    assert (told(wrong, "d").reason, told(wrong, "d").stalled) == ("Refused", True)


def test_without_an_object_that_never_was_the_pool_can_not_be_ready() -> None:
    wrong = ApiFailure(422, "422: nodeSelector")
    assert told(wrong, "Service chat", first=True).blocks
    assert "Service chat can't be made: " in told(wrong, "Service chat", first=True).message
    assert not told(wrong, "Service chat").blocks


def test_a_long_answer_is_cut() -> None:
    assert len(told(ApiFailure(422, "422: " + "x" * 9000), "d").message) < 600


def test_what_was_refused_is_asked_for_again_after_a_time_that_grows_and_ends() -> None:
    now = [0.0]
    refusals, failure = Refusals(lambda: now[0]), ApiFailure(422, "422: no")
    waits = []
    for _ in range(8):
        refusals.refused("d", 1, failure, first=False)
        began = now[0]
        while refusals.standing("d", 1) is not None:
            now[0] += 0.5
        waits.append(now[0] - began)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_another_spec_is_asked_for_at_once_and_what_is_taken_is_forgotten() -> None:
    refusals, failure = Refusals(lambda: 0.0), ApiFailure(422, "422: no")
    refusals.refused("d", 1, failure, first=False)
    assert refusals.standing("d", 1) is not None
    assert refusals.standing("d", 2) is None
    assert refusals.standing("other", 1) is None
    refusals.taken("d")
    assert refusals.standing("d", 1) is None


def test_a_failure_that_is_no_refusal_is_the_callers() -> None:
    refusals = Refusals(lambda: 0.0)
    with pytest.raises(ApiFailure, match="busy"):
        refusals.refused("d", 1, ApiFailure(429, "429: busy"), first=False)
    assert refusals.standing("d", 1) is None
