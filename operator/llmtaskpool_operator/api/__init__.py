"""The custom resource as types, its rules, and what is made of them: CRD and reference. Pure."""
