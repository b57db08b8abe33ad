package main

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// masquerade gives packets from the pods to addresses outside of their network the
// address of the node. The table is this program's alone and is replaced as a whole.
func masquerade(pods netip.Prefix) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	// Adding what exists changes nothing, deleting what does not exist fails.
	conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "podnet"})
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "podnet"})
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "podnet"})
	chain := conn.AddChain(&nftables.Chain{
		Name:     "postrouting",
		Table:    table,
		Type:     nftables.ChainTypeNAT,
		Hooknum:  nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: masqueradeExprs(pods)})
	return conn.Flush()
}

// Offsets of the addresses in the header of IPv4.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

// masqueradeExprs is the rule `ip saddr PODS ip daddr != PODS masquerade`.
func masqueradeExprs(pods netip.Prefix) []expr.Any {
	match := func(offset uint32, op expr.CmpOp) []expr.Any {
		mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - pods.Bits()))
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
			&expr.Cmp{Op: op, Register: 1, Data: pods.Masked().Addr().AsSlice()},
		}
	}
	rule := append(match(sourceOffset, expr.CmpOpEq), match(destinationOffset, expr.CmpOpNeq)...)
	return append(rule, &expr.Masq{})
}
