-- Health of an LLMTaskPool for Argo CD; docs/install.md says where it goes.
-- Conditions are read as kstatus reads them: Stalled, then Reconciling, then Ready.
local function condition(kind)
  if obj.status ~= nil and obj.status.conditions ~= nil then
    for _, one in ipairs(obj.status.conditions) do
      if one.type == kind then
        return one
      end
    end
  end
  return nil
end

local function holds(one)
  return one ~= nil and one.status == "True"
end

local function is(status, one, otherwise)
  local message = otherwise
  if one ~= nil and one.message ~= nil and one.message ~= "" then
    message = one.message
  end
  return { status = status, message = message }
end

if obj.metadata.deletionTimestamp ~= nil then
  return is("Progressing", nil, "being deleted")
end
if obj.status == nil or obj.status.conditions == nil then
  return is("Progressing", nil, "the operator has not answered yet")
end
if obj.metadata.generation ~= nil and (obj.status.observedGeneration or 0) < obj.metadata.generation then
  return is("Progressing", nil, "the operator has not seen this generation yet")
end

local stalled, degraded = condition("Stalled"), condition("Degraded")
local reconciling, ready = condition("Reconciling"), condition("Ready")
if holds(stalled) then
  return is("Degraded", stalled, "stalled")
elseif holds(degraded) then
  return is("Degraded", degraded, "degraded")
elseif holds(reconciling) then
  return is("Progressing", reconciling, "reconciling")
elseif holds(ready) then
  return is("Healthy", ready, "ready")
end
return is("Progressing", ready, "not ready yet")
