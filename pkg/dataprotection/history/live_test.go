package history

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// imitation responds as Kine does: with a revision, and without the IDs of a cluster and a member.
type imitation struct{ pb.UnimplementedKVServer }

func (*imitation) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 42}}, nil
}

func TestAStoreThatIsNotEtcdIsRefused(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	pb.RegisterKVServer(server, &imitation{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{listener.Addr().String()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	_, err = OpenLive(t.Context(), client, "/registry/")
	require.ErrorIs(t, err, ErrNotEtcd)
	require.ErrorContains(t, err, "Kine")
}

// values responds to reads: each key has a value.
type values struct{ pb.UnimplementedKVServer }

func (*values) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: header()}, nil
}

func (*values) Txn(_ context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	response := &pb.TxnResponse{Header: header(), Succeeded: true}
	for _, operation := range r.Success {
		kv := &mvccpb.KeyValue{Key: operation.GetRequestRange().Key, Value: []byte("value"), ModRevision: operation.GetRequestRange().Revision}
		response.Responses = append(response.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{kv}}}})
	}
	return response, nil
}

// compacting responds as an etcd that is compacted while its history is read: revisions 1 to 20,
// compacted at 5 when it is opened, and at 12 after the deletion at 7 was sent.
type compacting struct {
	values
	pb.UnimplementedWatchServer
}

func header() *pb.ResponseHeader { return &pb.ResponseHeader{ClusterId: 1, MemberId: 1, Revision: 20} }

// Txn is that of an etcd that was compacted at 14 by then.
func (c *compacting) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	for _, operation := range r.Success {
		if operation.GetRequestRange().Revision < 14 {
			return nil, rpctypes.ErrGRPCCompacted
		}
	}
	return c.values.Txn(ctx, r)
}

func (*compacting) Watch(stream pb.Watch_WatchServer) error {
	send := func(r *pb.WatchResponse) error {
		r.Header = header()
		return stream.Send(r)
	}
	deletion := func(key string, revision int64) []*mvccpb.Event {
		return []*mvccpb.Event{{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}}}
	}
	id := int64(0)
	for {
		request, err := stream.Recv()
		if err != nil {
			return nil
		}
		create := request.GetCreateRequest()
		if create == nil {
			if request.GetProgressRequest() != nil {
				// The revision 20 is not sent before the watch has all.
				if err := send(&pb.WatchResponse{WatchId: -1}); err != nil {
					return err
				}
			}
			continue
		}
		id++
		responses := []*pb.WatchResponse{{WatchId: id, Created: true}}
		switch create.StartRevision {
		case 1:
			responses = append(responses, &pb.WatchResponse{WatchId: id, Canceled: true, CompactRevision: 5})
		case 6:
			responses = append(responses, &pb.WatchResponse{WatchId: id, Events: deletion("/registry/a", 7)}, &pb.WatchResponse{WatchId: id, Canceled: true, CompactRevision: 12})
		case 13:
			responses = append(responses, &pb.WatchResponse{WatchId: id, Events: append(deletion("/registry/b", 13), deletion("/registry/c", 15)...)})
		}
		for _, r := range responses {
			if err := send(r); err != nil {
				return err
			}
		}
	}
}

func TestACompactionInTheMiddleIsAGap(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	pb.RegisterKVServer(server, &compacting{})
	pb.RegisterWatchServer(server, &compacting{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{listener.Addr().String()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	live, err := OpenLive(t.Context(), client, "/registry/")
	require.NoError(t, err)
	require.Equal(t, Bounds{Oldest: 5, Newest: 20}, live.Bounds())
	require.Zero(t, live.Gap)
	var keys, readable []string
	require.NoError(t, live.Deletions(t.Context(), "/registry/", func(d Deletion) error {
		keys = append(keys, d.Key)
		if d.Last != nil {
			readable = append(readable, d.Key)
			require.Equal(t, d.Revision-1, d.Last.ModRevision, "what the key held before")
		}
		return nil
	}))
	require.Equal(t, []string{"/registry/a", "/registry/b", "/registry/c"}, keys, "what is left is read")
	require.Equal(t, []string{"/registry/c"}, readable, "a value that was compacted hides no other one")
	require.Equal(t, Bounds{Oldest: 8, Newest: 12}, live.Gap, "deletions in it may be missing")
	require.Equal(t, Bounds{Oldest: 12, Newest: 20}, live.Bounds())
}

// late responds to each request for progress twice, the second time after the next watch was
// created: etcd does so with a request that came before that watch on the same stream.
type late struct {
	values
	pb.UnimplementedWatchServer
}

func (*late) Watch(stream pb.Watch_WatchServer) error {
	progress := &pb.WatchResponse{Header: header(), WatchId: clientv3.InvalidWatchID}
	owed := false
	id := int64(0)
	for {
		request, err := stream.Recv()
		if err != nil {
			return nil
		}
		var responses []*pb.WatchResponse
		switch create := request.GetCreateRequest(); {
		case create != nil:
			id++
			responses = append(responses, &pb.WatchResponse{Header: header(), WatchId: id, Created: true})
			if owed {
				responses = append(responses, progress)
				owed = false
			}
			if string(create.Key) == "/registry/" {
				responses = append(responses, &pb.WatchResponse{Header: header(), WatchId: id, Events: []*mvccpb.Event{{
					Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("/registry/a"), ModRevision: 7},
				}}})
			}
		case request.GetProgressRequest() != nil:
			responses = append(responses, progress)
			owed = true
		}
		for _, r := range responses {
			if err := stream.Send(r); err != nil {
				return err
			}
		}
	}
}

func TestTheProgressOfAnEarlierWatchDoesNotEndALaterOne(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	pb.RegisterKVServer(server, &late{})
	pb.RegisterWatchServer(server, &late{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{listener.Addr().String()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	// Whether the client takes the same stream for the next watch is a matter of chance.
	for attempt := range 20 {
		live, err := OpenLive(t.Context(), client, "/registry/")
		require.NoError(t, err)
		found := 0
		require.NoError(t, live.Deletions(t.Context(), "/registry/", func(Deletion) error {
			found++
			return nil
		}))
		require.Equal(t, 1, found, "attempt %d", attempt)
	}
}
