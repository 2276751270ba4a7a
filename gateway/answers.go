package gateway

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/gateway/command"
	"github.com/fieldferry/fieldferry/localbroker"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// tell publishes answers. It returns when they are durable wherever they have to be, or
// with an error if some could not be stored and are to be told again.
func (k *commands) tell(ctx context.Context, answers []command.Answer) error {
	told := make(receipt, 3*len(answers)) // has room for all
	n := 0
	var errs []error
	begun := func(err error) {
		switch {
		case err == nil:
			n++
		case errors.Is(err, buffer.ErrFull), errors.Is(err, buffer.ErrFailed), errors.Is(err, buffer.ErrClosed), ctx.Err() != nil:
			errs = append(errs, err)
		default: // and it would be no other time
			k.log.Error("an answer to a command could not be published", "error", err)
		}
	}
	for i := range answers {
		k.tellOne(ctx, &answers[i], told, begun)
	}
	for range n {
		select {
		case err := <-told:
			if err != nil {
				errs = append(errs, err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return errors.Join(errs...)
}

// tellOne publishes an answer everywhere it belongs. Each publish reports to begun, and
// if it went well to told.
func (k *commands) tellOne(ctx context.Context, a *command.Answer, told receipt, begun func(error)) {
	rep := a.Request.Reply.(*reply)
	e := &rep.envelope
	publish := func(name string) {
		begun(k.broker.Publish(ctx, &localbroker.Message{
			Topic: name, Payload: a.Bytes, Props: rep.props, QoS: 1, Received: time.Now(), Urgent: true,
		}, told))
	}
	own := ""
	if e.form == formCommand && e.device != "" {
		own = "devices/" + e.device + "/commands/response"
		publish(own)
	}
	if to := rep.replyTo; to != "" {
		if k.mayAnswer(e, to) {
			publish(to)
		} else {
			k.refused(e, to)
		}
	}
	to := rep.topic
	switch {
	case to == "" || to == rep.replyTo && e.from.Bridge == "" || to == own && e.from.Bridge == "":
	case e.from.Bridge == "" && k.mayAnswer(e, to):
		publish(to)
	case e.from.Bridge == "":
		k.refused(e, to)
	default:
		k.answerUpstream(ctx, e, rep, to, a.Bytes, told, begun)
	}
}

func (k *commands) refused(e *envelope, to string) {
	k.log.Warn("an answer was not published where the command asked for it; docs/commands.md says where it may be", "device", e.device, "topic", to, "bridge", e.from.Bridge, "client", e.from.Client)
}

// responses is where answers go that may go nowhere else.
const responses = "responses/"

// mayAnswer reports whether an answer may be published under a local topic. The gateway
// may publish everything; who asks it to must not get more than they have. So below
// responses/ they must be allowed to read, and elsewhere to publish themselves, and
// never what is the devices', a command, or the broker's.
func (k *commands) mayAnswer(e *envelope, name string) bool {
	switch {
	case topic.CheckName(name, 0) != nil, strings.HasPrefix(name, "$"), strings.HasPrefix(name, "devices/"), strings.HasPrefix(name, "requests/"):
		return false
	case e.from.Bridge != "":
		return strings.HasPrefix(name, responses)
	case k.recall == nil:
		return true
	}
	rights := k.recall(e.from.Username, e.from.Client)
	if rights == nil {
		return false
	}
	return rights.MayPublish(name) || strings.HasPrefix(name, responses) && rights.MayReceive(name)
}

// answerUpstream has an answer published under a topic of the upstream that the command
// came from.
func (k *commands) answerUpstream(ctx context.Context, e *envelope, rep *reply, to string, answer []byte, told receipt, begun func(error)) {
	for _, u := range k.bridges {
		if u.name != e.from.Bridge {
			continue
		}
		if up, err := u.mapper.UpstreamTopic(e.device, "commands/response"); err == nil && up == to && e.form == formCommand {
			return // it goes there as it is
		}
		if !u.mapper.MayAnswer(to) {
			k.refused(e, to)
			return
		}
		begun(k.buffer.Append(ctx, buffer.Command, &buffer.Message{
			Topic: "devices/" + e.device + "/commands/response", Payload: answer, QoS: 1, Enqueued: time.Now(), Urgent: true,
			Copies: []buffer.Copy{{Outbox: u.outboxesOf(e.device)[buffer.Command], Topic: to, Props: u.mapper.Mark(slices.Clone(rep.props)), QoS: 1}},
		}, told))
		return
	}
}
