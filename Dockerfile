# Berth's three images, for those who have a container engine:
#
#   docker build --target operator -t ghcr.io/berth-dev/berth-operator:dev .
#
# and likewise agent and shim. Each is static binaries on nothing: one, and in the
# agent's the guests' program beside it. The lab makes its own without an engine. Without gRPC's traces, and the templates that
# they bring, the linker leaves out a fifth of the agent.

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY api api
COPY cmd cmd
COPY controllers controllers
COPY internal internal
ARG TARGETARCH VERSION=dev
RUN mkdir /out && CGO_ENABLED=0 GOOS=linux GOARCH=$TARGETARCH \
    go build -trimpath -tags grpcnotrace -ldflags "-s -w -X main.version=$VERSION" -o /out/ ./cmd/...

# What kubectl exec may call in a guest's place: links to the shim, in the one directory that all usual paths lead to.
RUN mkdir -p /shim/bin /shim/usr && ln -s bin /shim/sbin && ln -s ../bin /shim/usr/bin && ln -s ../bin /shim/usr/sbin && \
    xargs -a cmd/berth-shim/names -I {} ln -s /berth-shim /shim/bin/{} && mv /out/berth-shim /shim/

FROM scratch AS operator
COPY --from=build /out/berth-operator /
USER 65532:65532
ENTRYPOINT ["/berth-operator"]

# Root, but by named capabilities only: see the chart. It speaks to registries,
# and knows the public certificate authorities.
FROM scratch AS agent
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/berth-agent /out/berth-guest /
USER 0:0
ENTRYPOINT ["/berth-agent"]

FROM scratch AS shim
COPY --from=build /shim/ /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
USER 65532:65532
ENTRYPOINT ["/berth-shim"]
