package agent

// What an agent's token may do. A ValidatingAdmissionPolicy of the chart binds
// the writes to its node; the reads cannot be bound, so nothing secret is in what it reads.
//
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines,verbs=get;list;watch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines/status,verbs=patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch;update
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create
