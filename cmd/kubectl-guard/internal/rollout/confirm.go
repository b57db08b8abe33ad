package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/pkg/rollout"
)

// accept confirms all that needs a yes before anything is done.
func (o *startOptions) accept(ctx context.Context, plans []*poolPlan) error {
	var unaudited []string
	for _, p := range plans {
		if p.request.Target == rollout.Enforce {
			unaudited = append(unaudited, p.unaudited()...)
		}
	}
	if len(unaudited) > 0 && !o.skipAudit {
		o.Warn("Nodes on which Audit has not run: %s. Audit shows what the guard would refuse, and changes nothing; the documented order is Audit for some days, then Enforce", printer.Listed(unaudited))
		if o.yes {
			return errors.New("--mode=Enforce needs --skip-audit where Audit has not run; nothing was done")
		}
		if err := o.Confirm(ctx, "Enforce without Audit before it?"); err != nil {
			return err
		}
	}
	if err := o.acceptMany(ctx, plans); err != nil {
		return err
	}
	if err := o.acceptRelease(ctx, plans, o.yes, o.releaseHeld); err != nil {
		return err
	}
	if o.yes {
		return nil
	}
	fmt.Fprintln(o.Out, "Installers inspect the nodes first; no node is changed before you confirm again.")
	return o.Confirm(ctx, fmt.Sprintf("Start installers on nodes: %d?", nodesOf(plans)))
}

// many reports whether a build that does not work would be on too many nodes before the
// first of them reports it.
func many(atOnce, nodes int) bool {
	return atOnce > 1 && (atOnce > 50 || atOnce*4 > nodes)
}

// acceptMany confirms pools of which many nodes are changed at a time.
func (o *startOptions) acceptMany(ctx context.Context, plans []*poolPlan) error {
	if o.maxUnavailable == "" || o.manyAtOnce {
		return nil
	}
	for _, p := range plans {
		if !many(p.MaxUnavailable, len(p.Nodes)) {
			continue
		}
		text := fmt.Sprintf("%d of %d nodes of pool %s at a time, and a kubelet that does not work may be on all of these before the roll-out stops", p.MaxUnavailable, len(p.Nodes), p.Name)
		if o.yes {
			return fmt.Errorf("--max-unavailable=%s is %s: give --many-at-once if that is meant; nothing was done", o.maxUnavailable, text)
		}
		if err := o.Confirm(ctx, text+". Continue?"); err != nil {
			return err
		}
	}
	return nil
}

// acceptRelease confirms the held pods that were shown, and adds them to the requests.
// A pod that is held later, or on a node that did not respond, is not among them: its node
// refuses.
func (o *waiter) acceptRelease(ctx context.Context, plans []*poolPlan, yes, release bool) error {
	held := 0
	for _, p := range plans {
		if p.releases() {
			held += len(p.held)
		}
	}
	switch {
	case held == 0:
		return nil
	case held > rollout.MaxReleased:
		return fmt.Errorf("held pods that would be stopped: %d; at most %d can be released at a time, so nothing was done. See kubectl guard holds -A and fix the causes, or take smaller pools", held, rollout.MaxReleased)
	case release:
	case yes:
		return fmt.Errorf("held pods that would be stopped: %d; nothing was done. See kubectl guard holds -A and fix the causes, or allow it with --release-held", held)
	default:
		if err := o.Confirm(ctx, fmt.Sprintf("Stop held pods: %d?", held)); err != nil {
			return err
		}
	}
	for _, p := range plans {
		if p.releases() {
			p.release()
		}
	}
	return nil
}

// release adds the held pods of a plan to its request.
func (p *poolPlan) release() {
	var uids []types.UID
	for _, pod := range p.held {
		uids = append(uids, pod.UID)
	}
	slices.Sort(uids)
	if slices.Equal(uids, p.request.ReleaseHeldUIDs) {
		return
	}
	p.request.ReleaseHeldUIDs = uids
	// It is another request than the one that the pool has.
	p.attach, p.complete = false, false
}

func nodesOf(plans []*poolPlan) int {
	n := 0
	for _, p := range plans {
		n += len(p.Nodes)
	}
	return n
}
