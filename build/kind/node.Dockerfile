# What `guard-e2e kind up` makes a node image from where no registry can be asked:
# BASE is a Debian with the files of kind's base image, root/ the programs of a node.
# The images of the control plane are imported afterwards.
ARG BASE
FROM ${BASE}
COPY root/ /
# systemd asks for this variable, and ends on this signal.
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
