#!/usr/bin/env bash
# What `make demo` shows once the lab is up: a Debian guest by kubectl alone.
set -euo pipefail
cd "$(dirname "$0")/.."
eval "$("$BERTH_CACHE/bin/lab" -root "$PWD" env)"
ns=berth-demo
work=$(mktemp -d)
k() { kubectl -n "$ns" "$@"; }
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ kubectl %s\n' "$*"; k "$@"; }

clean() {
	kubectl delete namespace "$ns" --ignore-not-found --wait --timeout=5m >/dev/null
	rm -rf "$work"
}
trap clean EXIT
kubectl delete namespace "$ns" --ignore-not-found --wait --timeout=5m >/dev/null
kubectl create namespace "$ns" >/dev/null
kubectl label namespace "$ns" pod-security.kubernetes.io/enforce=restricted >/dev/null

say "1. A Debian guest: user data from a Secret, a Service, a readiness probe (examples/web.yaml), and an ssh key"
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
sed -e "s#image: .*#image: $LAB_IMAGE_CLOUD#" -e "/^  cloudInit:/i \  sshAuthorizedKeys: [$(cut -d' ' -f1,2 "$work/key.pub")]" examples/web.yaml >"$work/guest.yaml"
cat "$work/guest.yaml"
run apply -f "$work/guest.yaml"

say "2. It starts; its serial console is the pod's log"
k wait vm/web --for=condition=Running --timeout=5m >/dev/null
k logs -f web 2>/dev/null | sed -u -n 's/^\(.\{110\}\).*/\1/; 1p; /Reached target\|login:/p' &
logs=$!
run wait vm/web --for=condition=Ready --timeout=10m
kill "$logs" 2>/dev/null || true
run get vm,pods,service -o wide

say "3. It answers HTTP through its Service, asked by a pod"
sed "s#IMAGE#$LAB_IMAGE_TOOLS#" hack/demo/client.yaml | k apply -f - >/dev/null
k wait pod/client --for=condition=Ready --timeout=1m >/dev/null
run exec client -- /tools get http://web

say "4. The ssh key opens it (by kubectl port-forward), and it reaches a pod by its Service's name"
exec {forward}< <(exec kubectl -n "$ns" port-forward web :22)
forwarder=$!
read -r -u "$forward" line # Forwarding from 127.0.0.1:PORT -> 22
port=${line#*127.0.0.1:}
port=${port%% *}
ssh -q -i "$work/key" -p "$port" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null debian@127.0.0.1 \
	'echo "logged in as $(whoami) on $(hostname), $(. /etc/os-release; echo $PRETTY_NAME)"; curl -s -m 20 http://client'
kill "$forwarder"

say "5. What the guest agent tells, and what the container of the guest uses"
run get vm web -o jsonpath='{.status.guest}{"\n"}'
node=$(k get vm web -o jsonpath='{.status.nodeName}')
printf '$ kubectl get --raw /api/v1/nodes/%s/proxy/stats/summary  (what metrics-server reads)\n' "$node"
kubectl get --raw "/api/v1/nodes/$node/proxy/stats/summary" |
	jq -r '.pods[] | select(.podRef.name == "web") | .containers[] | "\(.name): CPU \(.cpu.usageNanoCores / 1e6 | floor) m, memory \(.memory.workingSetBytes / 1048576 | floor) MiB"'

say "6. Delete it: nothing is left on any node"
uid=$(k get vm web -o jsonpath='{.metadata.uid}')
run delete vm web --timeout=5m
for node in $LAB_NODES; do
	left=$(lab exec "$node" -- sh -c "virsh list --all --uuid | grep $uid; pgrep -f '^/usr/bin/qemu-system.*-uuid $uid'; ls -d /var/lib/berth/vms/$uid /run/berth/*/$uid* 2>/dev/null; grep $uid /proc/mounts; true")
	if [ -n "$left" ]; then
		printf 'left on %s:\n%s\n' "$node" "$left"
		exit 1
	fi
	echo "$node: no domain, process, disk, seed or mount of it"
done

say "The lab stays up. Try next:"
cat <<'TXT'
  eval "$(make -s lab-env)"              kubectl and helm for this cluster
  kubectl get vmhost                     the KVM hosts
  kubectl apply -f examples/…            more guests; docs/ says what each does
  kubectl attach -it NAME                a guest's console, to type into
  make test                              every test
  make down                              take it all down
TXT
