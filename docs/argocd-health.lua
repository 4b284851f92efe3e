-- The health of a VirtualMachine for Argo CD. In the ConfigMap argocd-cm, under the key
-- resource.customizations.health.berth.dev_VirtualMachine
local status = obj.status or {}
if obj.metadata.deletionTimestamp ~= nil then
  return {status = "Progressing", message = "being deleted"}
end
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Berth has not looked at this change yet"}
end
local ready = nil
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Stalled" and condition.status == "True" then
    return {status = "Degraded", message = condition.reason .. ": " .. condition.message}
  end
  if condition.type == "Ready" and condition.status ~= "True" then
    ready = condition
  end
end
if ready ~= nil then
  return {status = "Progressing", message = ready.reason .. ": " .. ready.message}
end
return {status = "Healthy", message = status.phase or ""}
