"""Checks of deploy/, run by tests/manifests."""

import copy
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import unittest

import kubernetes_validate
import yaml
from cel_expr_python import cel

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPONENTS = sorted(p.name for p in (DEPLOY / "components").iterdir())
# The oldest supported release and the newest that the schemas know.
RELEASES = ["1.33", kubernetes_validate.latest_version()]
# Kinds that only their operator's CRDs describe.
CUSTOM_KINDS = {"PodMonitor"}
# What every cluster has in kube-system, as Kubernetes 1.33 defines it.
CLUSTER_S_OWN = {
    "metadata": {"name": "extension-apiserver-authentication-reader"},
    "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}],
}


def render(*components):
    """The objects of deploy/base with the given components, as kubectl renders them."""
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as overlay:
        path = lambda p: os.path.relpath(DEPLOY / p, overlay)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [path("base")],
            "components": [path(f"components/{c}") for c in components],
        }
        (pathlib.Path(overlay) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        run = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True)
    if run.returncode != 0:
        raise AssertionError(f"kubectl kustomize with {components}: {run.stderr}")
    return list(yaml.safe_load_all(run.stdout))


def find(objects, kind, name="podsonde-agent"):
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def privileges(objects):
    """What the agent's pod and ServiceAccount have beyond any restricted pod, in the words of deploy/README.md."""
    pod = find(objects, "DaemonSet")["spec"]["template"]["spec"]
    for field in ("hostPID", "hostIPC", "hostNetwork"):
        if pod.get(field):
            yield f"{field}: true"
    for volume in pod.get("volumes", []):
        yield from (f"volume {source}" for source in volume if source != "name")
    for container in pod.get("initContainers", []) + pod["containers"]:
        context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        if context.get("privileged"):
            yield "privileged: true"
        if context.get("allowPrivilegeEscalation", True):
            yield "allowPrivilegeEscalation: true"
        if not context.get("readOnlyRootFilesystem"):
            yield "readOnlyRootFilesystem: false"
        if context.get("procMount", "Default") != "Default":
            yield "procMount: Unmasked"
        if not context.get("runAsUser"):
            yield "runAsUser: 0"
        if "seLinuxOptions" in context:
            yield "seLinuxOptions"
        # Without a field AppArmor's profile is the runtime's default, seccomp's is none.
        if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") != "RuntimeDefault":
            yield f"appArmorProfile: {context['appArmorProfile']['type']}"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield "seccompProfile: Unconfined"
        capabilities = context.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"]:
            yield "the runtime's default capabilities"
        yield from (f"capability {c}" for c in capabilities.get("add", []))
        yield from ("host port" for port in container.get("ports", []) if "hostPort" in port)
    for kind, roles in (("ClusterRoleBinding", {"ClusterRole"}), ("RoleBinding", {"Role", "ClusterRole"})):
        for binding in (o for o in objects if o["kind"] == kind):
            if any(s["name"] == "podsonde-agent" for s in binding["subjects"]):
                assert binding["roleRef"]["kind"] in roles
                if binding["roleRef"]["name"] == CLUSTER_S_OWN["metadata"]["name"]:
                    assert binding["metadata"]["namespace"] == "kube-system"
                    role = CLUSTER_S_OWN
                else:
                    role = find(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
                for rule in role["rules"]:
                    for group in rule.get("apiGroups", []):
                        for resource in rule.get("resources", []) + rule.get("nonResourceURLs", []):
                            yield from (f"{v} {f'{group}/' if group else ''}{resource}" for v in rule["verbs"])


def documented_privileges():
    section = (DEPLOY / "README.md").read_text().split("## What each privilege is for")[1]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


class Manifests(unittest.TestCase):
    def test_every_component_renders_and_fits_the_schemas(self):
        for components in [(), *((c,) for c in COMPONENTS), tuple(COMPONENTS)]:
            for thing in render(*components):
                if thing["kind"] in CUSTOM_KINDS:
                    continue
                for release in RELEASES:
                    with self.subTest(components=components, kind=thing["kind"], release=release):
                        kubernetes_validate.validate(thing, release, strict=True)

    def test_schemas_refuse_an_unknown_field(self):
        daemonset = find(render(), "DaemonSet")
        daemonset["spec"]["template"]["spec"]["hostPid"] = True
        for release in RELEASES:
            with self.assertRaises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(daemonset, release, strict=True)

    def test_privileges_are_those_of_the_table(self):
        self.assertEqual(set(privileges(render())), documented_privileges())

    def test_a_grown_privilege_is_noticed(self):
        def pod(o):
            return find(o, "DaemonSet")["spec"]["template"]["spec"]

        def context(o):
            return pod(o)["containers"][0]["securityContext"]

        def rules(o):
            return find(o, "ClusterRole")["rules"]

        grow = {
            "hostNetwork: true": lambda o: pod(o).update(hostNetwork=True),
            "volume hostPath": lambda o: pod(o).update(volumes=[{"name": "v", "hostPath": {"path": "/"}}]),
            "privileged: true": lambda o: context(o).update(privileged=True),
            "readOnlyRootFilesystem: false": lambda o: context(o).pop("readOnlyRootFilesystem"),
            "seccompProfile: Unconfined": lambda o: context(o).pop("seccompProfile"),
            "capability NET_ADMIN": lambda o: context(o)["capabilities"]["add"].append("NET_ADMIN"),
            "the runtime's default capabilities": lambda o: context(o)["capabilities"].pop("drop"),
            "get secrets": lambda o: rules(o).append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
            "* */*": lambda o: rules(o).append({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}),
        }
        rendered = render()
        for privilege, change in grow.items():
            with self.subTest(privilege):
                changed = copy.deepcopy(rendered)
                change(changed)
                self.assertIn(privilege, set(privileges(changed)) - documented_privileges())

    def test_no_role_has_a_wildcard(self):
        roles = [o for o in render(*COMPONENTS) if o["kind"] in ("Role", "ClusterRole")]
        self.assertTrue(roles)
        for role in roles:
            for rule in role["rules"]:
                for field in ("apiGroups", "resources", "verbs"):
                    self.assertNotIn("*", "".join(rule.get(field, [])), role["metadata"]["name"])

    def test_no_role_for_people_is_bound(self):
        bound = [b["roleRef"]["name"] for b in render(*COMPONENTS) if b["kind"].endswith("RoleBinding")]
        self.assertEqual(sorted(bound), [CLUSTER_S_OWN["metadata"]["name"], "podsonde-agent", "podsonde-agent"])

    def test_version_is_the_crate_s(self):
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
        for thing in render():
            self.assertEqual(thing["metadata"]["labels"]["app.kubernetes.io/version"], version)
        [agent] = find(render(), "DaemonSet")["spec"]["template"]["spec"]["containers"]
        self.assertEqual(agent["image"], f"ghcr.io/podsonde/podsonde-agent:{version}")

    def test_version_is_no_part_of_the_selector(self):
        selector = find(render(), "DaemonSet")["spec"]["selector"]
        # A selector cannot be changed, so an upgrade would fail.
        self.assertEqual(selector, {"matchLabels": {"app.kubernetes.io/name": "podsonde-agent"}})

    def test_grpc_has_tls_and_the_probes_find_their_port(self):
        [agent] = find(render(), "DaemonSet")["spec"]["template"]["spec"]["containers"]
        ports = {p["name"]: p["containerPort"] for p in agent["ports"]}
        # Any address but loopback has TLS.
        self.assertEqual([a for a in agent["args"] if "listen=" in a and "metrics" not in a], [f"--listen=0.0.0.0:{ports['grpc']}"])
        self.assertIn(f"--metrics-listen=0.0.0.0:{ports['metrics']}", agent["args"])
        self.assertIn("--node-name=$(NODE_NAME)", agent["args"])
        env = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in agent["env"]}
        self.assertEqual(env, {"NODE_NAME": "spec.nodeName", "POD_NAMESPACE": "metadata.namespace", "POD_IP": "status.podIP", "POD_UID": "metadata.uid"})
        for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            self.assertEqual(agent[probe]["httpGet"], {"path": path, "port": "metrics"})
        monitor = find(render("prometheus"), "PodMonitor")
        self.assertEqual(monitor["spec"]["podMetricsEndpoints"][0]["port"], "metrics")


AGENT = "system:serviceaccount:podsonde:podsonde-agent"
NODE = "authentication.kubernetes.io/node-name"


class Policy:
    """Evaluates the rendered ValidatingAdmissionPolicy as an API server does."""

    def __init__(self, objects, name="podsonde-agent"):
        policy = find(objects, "ValidatingAdmissionPolicy", name)
        binding = find(objects, "ValidatingAdmissionPolicyBinding", name)
        assert binding["spec"]["policyName"] == policy["metadata"]["name"]
        assert "Deny" in binding["spec"]["validationActions"]
        assert policy["spec"]["failurePolicy"] == "Fail"
        self.spec = policy["spec"]
        names = ("object", "oldObject", "request", "variables")
        self.env = cel.NewEnv(variables={name: cel.Type.DYN for name in names})

    def evaluate(self, expression, data):
        """The expression's value; None if it does not evaluate, which under failurePolicy Fail denies."""
        value = self.env.compile(expression).eval(data=data)
        return None if value.type() == cel.Type.ERROR else value.plain_value()

    def decide(self, user, old, new):
        """None if the request is not this policy's business, otherwise the messages of the validations that deny it."""
        data = {"request": {"userInfo": user}, "oldObject": old, "object": new, "variables": {}}
        if not all(self.evaluate(c["expression"], data) is True for c in self.spec["matchConditions"]):
            return None
        for variable in self.spec.get("variables", []):
            value = self.evaluate(variable["expression"], data)
            assert value is not None, f"{variable['name']} does not evaluate on {data}"
            data["variables"][variable["name"]] = value
        # One that does not evaluate denies too, but with a message that helps nobody: no case
        # expects that.
        results = [(v["message"], self.evaluate(v["expression"], data)) for v in self.spec["validations"]]
        return ["does not evaluate" if result is None else message for message, result in results if result is not True]


def user(name=AGENT, node="here"):
    extra = {} if node is None else {NODE: [node] if isinstance(node, str) else node}
    return {"username": name, "groups": [], **({"extra": extra} if extra else {})}


def pod(existing=(), node="here", **spec):
    spec = {"containers": [{"name": "app"}], **({} if node is None else {"nodeName": node}), **spec}
    if existing:
        spec["ephemeralContainers"] = list(existing)
    return {"metadata": {"name": "p"}, "spec": spec}


def container(name="debug", **context):
    return {"name": name, "image": "busybox", **({"securityContext": context} if context else {})}


def referring(name="debug", **fields):
    return {**container(name), **fields}


def adds(*capabilities):
    return container(capabilities={"add": list(capabilities)})


NODE_PIN, CONFINED, CAPABILITIES, HOST = "only to pods of the node", "privileged, unmask", "other than", "with hostPID"
REFERENCES = "with envFrom, valueFrom"
PLAIN = container()
# What is asked by whom for which pod, and a part of each message that the base and allow-privileged
# deny it with (None: not matched).
CASES = {
    "own node": (user(), pod(), PLAIN, [], []),
    "other node": (user(node="there"), pod(), PLAIN, [NODE_PIN], [NODE_PIN]),
    "other pod's node": (user(), pod(node="there"), PLAIN, [NODE_PIN], [NODE_PIN]),
    "no node name in the token": (user(node=None), pod(), PLAIN, [NODE_PIN], [NODE_PIN]),
    "empty list of node names": (user(node=[]), pod(), PLAIN, [NODE_PIN], [NODE_PIN]),
    "two node names": (user(node=["here", "there"]), pod(), PLAIN, [NODE_PIN], [NODE_PIN]),
    "empty node name": (user(node=""), pod(node=None), PLAIN, [NODE_PIN], [NODE_PIN]),
    "pod without a node": (user(), pod(node=None), PLAIN, [NODE_PIN], [NODE_PIN]),
    "privileged": (user(), pod(), container(privileged=True), [CONFINED], []),
    "privileged on another node": (user(node="there"), pod(), container(privileged=True), [NODE_PIN, CONFINED], [NODE_PIN]),
    "explicitly unprivileged": (user(), pod(), container(privileged=False), [], []),
    "unmasked proc": (user(), pod(), container(procMount="Unmasked"), [CONFINED], []),
    "default proc": (user(), pod(), container(procMount="Default"), [], []),
    "seccomp off": (user(), pod(), container(seccompProfile={"type": "Unconfined"}), [CONFINED], []),
    "seccomp on": (user(), pod(), container(seccompProfile={"type": "RuntimeDefault"}), [], []),
    "AppArmor off": (user(), pod(), container(appArmorProfile={"type": "Unconfined"}), [CONFINED], []),
    "SELinux label": (user(), pod(), container(seLinuxOptions={"type": "spc_t"}), [CONFINED], []),
    "profile general": (user(), pod(), adds("SYS_PTRACE"), [], []),
    "profile netadmin": (user(), pod(), adds("NET_ADMIN", "NET_RAW"), [], []),
    "profile restricted": (user(), pod(hostPID=True), container(capabilities={"drop": ["ALL"]}, runAsNonRoot=True), [], []),
    "SYS_ADMIN": (user(), pod(), adds("SYS_ADMIN"), [CAPABILITIES], []),
    "SYS_ADMIN after an allowed one": (user(), pod(), adds("SYS_PTRACE", "SYS_ADMIN"), [CAPABILITIES], []),
    "all capabilities": (user(), pod(), adds("ALL"), [CAPABILITIES], []),
    "CAP_ spelling": (user(), pod(), adds("CAP_SYS_ADMIN"), [CAPABILITIES], []),
    "nothing added beside hostPID": (user(), pod(hostPID=True), PLAIN, [], []),
    "SYS_PTRACE beside hostPID": (user(), pod(hostPID=True), adds("SYS_PTRACE"), [HOST], []),
    "NET_ADMIN beside hostNetwork": (user(), pod(hostNetwork=True), adds("NET_ADMIN"), [HOST], []),
    "SYS_PTRACE beside hostIPC": (user(), pod(hostIPC=True), adds("SYS_PTRACE"), [HOST], []),
    "hostPID false": (user(), pod(hostPID=False), adds("SYS_PTRACE"), [], []),
    "a privileged one is there already": (user(), pod([container("old", privileged=True)]), PLAIN, [], []),
    "privileged beside one that is there": (user(), pod([container("old")]), container(privileged=True), [CONFINED], []),
    "a plain variable": (user(), pod(), referring(env=[{"name": "A", "value": "1"}]), [], []),
    "a session's own variables": (user(), pod(), referring(env=[{"name": "PODSONDE_SEAL", "value": "5ea1"}]), [], []),
    "another user, privileged": (user(name="alice", node=None), pod(), container(privileged=True), None, None),
    "the same name elsewhere": (user(name="system:serviceaccount:shop:podsonde-agent"), pod(), PLAIN, None, None),
}


# Everything that makes the kubelet hand something over, by itself and after a harmless variable.
REFERRING = {
    "envFrom a Secret": {"envFrom": [{"secretRef": {"name": "s"}}]},
    "envFrom a ConfigMap": {"envFrom": [{"configMapRef": {"name": "c"}}]},
    "a key of a Secret": {"env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
    "a key of a ConfigMap": {"env": [{"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]},
    "a field": {"env": [{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]},
    "a key of a file": {"env": [{"name": "B", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}}]},
    "a volume": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
    "a block device": {"volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]},
}
# One of these is there already, and the request adds nothing of its kind.
CASES["a reference is there already"] = (user(), pod([referring("old", **REFERRING["a volume"])]), PLAIN, [], [])
for what, fields in REFERRING.items():
    CASES[what] = (user(), pod(), referring(**fields), [REFERENCES], [REFERENCES])
    CASES[f"{what}, asked for by somebody else"] = (user(name="alice", node=None), pod(), referring(**fields), None, None)


class Admission(unittest.TestCase):
    def test_table(self):
        for column, components in ((3, ()), (4, ("allow-privileged",))):
            policy = Policy(render(*components))
            for name, case in CASES.items():
                with self.subTest(name, components=components):
                    who, old, new, expected = case[0], case[1], copy.deepcopy(case[1]), case[column]
                    new["spec"].setdefault("ephemeralContainers", []).append(case[2])
                    decision = policy.decide(who, old, new)
                    if expected is None or decision is None:
                        self.assertEqual(decision, expected)
                        continue
                    self.assertEqual(len(decision), len(expected), decision)
                    for message, part in zip(decision, expected):
                        self.assertIn(part, message)

    def test_references_are_for_who_wants_them(self):
        [agent] = find(render("allow-references"), "DaemonSet")["spec"]["template"]["spec"]["containers"]
        self.assertIn("--allow-references", agent["args"])
        policy = Policy(render("allow-references"))
        for what, fields in {**REFERRING, "nothing": {}}.items():
            with self.subTest(what):
                new = pod([referring(**fields)])
                self.assertEqual(policy.decide(user(), pod(), new), [])
                self.assertEqual(len(policy.decide(user(node="there"), pod(), new)), 1)
        privileged = pod([container(privileged=True)])
        [message] = policy.decide(user(), pod(), privileged)
        self.assertIn(CONFINED, message)

    def test_an_agent_writes_the_lease_of_its_own_node(self):
        policy = Policy(render(*COMPONENTS), "podsonde-agent-lease")
        named = lambda name: {"metadata": {"name": name}}
        cases = [
            ("its own", user(), named("podsonde-agent-here"), True),
            ("another node's", user(), named("podsonde-agent-there"), False),
            ("something else", user(), named("kube-scheduler"), False),
            ("a name that the server makes", user(), {"metadata": {"generateName": "podsonde-agent-here"}}, False),
            ("no node name in the token", user(node=None), named("podsonde-agent-here"), False),
            ("an empty list of node names", user(node=[]), named("podsonde-agent-here"), False),
            ("two node names", user(node=["here", "there"]), named("podsonde-agent-here"), False),
            ("deleted", user(), None, False),
            ("somebody else", user(name="alice", node=None), named("podsonde-agent-here"), None),
        ]
        for name, who, new, allowed in cases:
            with self.subTest(name):
                decision = policy.decide(who, None, new)
                self.assertEqual(None if decision is None else decision == [], allowed, decision)

    def test_an_agent_tells_of_pods_as_itself(self):
        policy = Policy(render(*COMPONENTS), "podsonde-agent-event")

        def event(kind="Pod", component="podsonde-agent", host="here", reporting="podsonde-agent"):
            return {"involvedObject": {"kind": kind}, "source": {"component": component, "host": host}, "reportingComponent": reporting}

        cases = [
            ("about a pod of its node", user(), event(), True),
            ("about a node", user(), event(kind="Node"), False),
            ("as the kubelet", user(), event(component="kubelet", reporting="kubelet"), False),
            ("as the kubelet in one field", user(), event(component="kubelet"), False),
            ("as another node's", user(), event(host="there"), False),
            ("no node name in the token", user(node=None), event(), False),
            ("without a source", user(), {k: v for k, v in event().items() if k != "source"}, False),
            ("deleted", user(), None, False),
            ("somebody else", user(name="alice", node=None), event(kind="Node"), None),
        ]
        for name, who, new, allowed in cases:
            with self.subTest(name):
                decision = policy.decide(who, None, new)
                self.assertEqual(None if decision is None else decision == [], allowed, decision)

    def test_it_covers_the_subresource_and_the_service_account_that_the_agent_has(self):
        objects = render()
        account = find(objects, "ServiceAccount")["metadata"]
        self.assertEqual(AGENT, f"system:serviceaccount:{account['namespace']}:{account['name']}")
        [rule] = find(objects, "ValidatingAdmissionPolicy")["spec"]["matchConstraints"]["resourceRules"]
        # Reviews change nothing, and events only add to what is told.
        harmless = {"get", "list", "watch", "create"}
        # Events have a policy of their own.
        rules = [r for r in find(objects, "ClusterRole")["rules"] if r["resources"] != ["events"]]
        [writes] = [r for r in rules if set(r["verbs"]) - harmless]
        self.assertEqual((rule["apiGroups"], rule["resources"]), (writes["apiGroups"], writes["resources"]))
        self.assertEqual(rule["operations"], ["*"])
        [lease] = find(objects, "ValidatingAdmissionPolicy", "podsonde-agent-lease")["spec"]["matchConstraints"]["resourceRules"]
        [writes] = find(objects, "Role")["rules"]
        self.assertEqual((lease["apiGroups"], lease["resources"]), (writes["apiGroups"], writes["resources"]))


if __name__ == "__main__":
    result = unittest.main(exit=False, verbosity=2).result
    failed = len({t.id().split(" ")[0] for t, _ in result.failures + result.errors})
    print(f"{result.testsRun - failed} passed, {failed} failed")
    sys.exit(failed != 0)
