# Trow as a static binary in an empty image, for amd64 and arm64:
#
#   docker buildx build --platform linux/amd64,linux/arm64 -t trow:0.1.0 .
#
# The compiler runs on the build machine's own platform and crosses over, so no emulation is needed.
FROM --platform=$BUILDPLATFORM golang:1.26.8@sha256:3c3e25a4da13fd0478eed2df1eb35a0e667094a7124d3993a6a1d30f71c17e79 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags="-s -w" -o /out/trow . \
 && mkdir -p /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/trow /trow
# The data directory belongs to the user, so that a container without a volume works as well.
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
# Outside of a container the default is 127.0.0.1:8443, where only the machine itself can connect.
ENV TROW_LISTEN=:8443
EXPOSE 8443
VOLUME /data
ENTRYPOINT ["/trow"]
CMD ["serve", "--data-dir=/data"]
