// SPDX-License-Identifier: GPL-2.0
/*
 * The work of stackmap.aio's transports for every message, for Python.
 *
 * Received payload goes to protocols from here.  A write is put into its slot here if there is
 * nothing else to it; all else is left to the Python method.  The state of a transport is in the
 * slots of the Python object.
 */
#include "_fast.h"

/* stackmap.aio.PortTransport, and where its instances have what is looked at here. */
static struct {
	PyTypeObject *type;
	Py_ssize_t closing, paused, held, takes, protocol, context;
	Py_ssize_t eof, file_sender, conn_lost, connection, loop;
} transport;
/* PortTransport._takes: the kind of argument that its protocol takes. */
enum { TAKES_BYTES, TAKES_BUFFERS, TAKES_SEGMENTS };

/* stackmap.Connection.app */
static Py_ssize_t connection_app;
static PyTypeObject *connection_type;

static PyObject *name_data_received, *name_get_buffer, *name_buffer_updated;
static PyObject *name_segments_received, *name_append, *name_receive_event, *name_fatal_error;
static PyObject *name_thread_id, *minus_one;

/* -- receiving -- */

/* Segments that one connection received, from a byte of the first one on. */
struct run {
	PyObject *const *segments;
	Py_ssize_t count;
	Py_ssize_t start;
};

static struct segment *first_of(const struct run *run)
{
	return (struct segment *)run->segments[0];
}

/*
 * Copy what there is room for, and take it off the run.  Returns the number of bytes; -1 with an
 * exception, for instance because a segment was released.
 */
static Py_ssize_t take_from(struct run *run, char *to, Py_ssize_t room)
{
	Py_ssize_t taken = 0;

	while (run->count && taken < room) {
		Py_buffer payload;
		Py_ssize_t n;

		if (smf_get_payload(first_of(run), &payload))
			return -1;
		n = Py_MIN(payload.len - run->start, room - taken);
		memcpy(to + taken, (char *)payload.buf + run->start, n);
		taken += n;
		run->start += n;
		if (run->start == payload.len) {
			run->segments++;
			run->count--;
			run->start = 0;
		}
		PyBuffer_Release(&payload);
	}
	return taken;
}

/* Take all of a run, as one object. */
static PyObject *take_bytes(struct run *run)
{
	Py_ssize_t size = -run->start;
	PyObject *bytes;

	for (Py_ssize_t i = 0; i < run->count; i++) {
		Py_buffer payload;

		if (smf_get_payload((struct segment *)run->segments[i], &payload))
			return NULL;
		size += payload.len;
		PyBuffer_Release(&payload);
	}
	bytes = PyBytes_FromStringAndSize(NULL, size);
	if (bytes && take_from(run, PyBytes_AS_STRING(bytes), size) < 0)
		Py_CLEAR(bytes);
	return bytes;
}

/* Take all of a run, as one segment with a payload of its own, which outlives the turn. */
static PyObject *take_segment(struct run *run)
{
	PyObject *connection = first_of(run)->connection;
	PyObject *bytes = take_bytes(run);
	PyObject *view = bytes ? PyMemoryView_FromObject(bytes) : NULL;
	PyObject *segment = NULL;

	if (view)
		segment = PyObject_CallFunction((PyObject *)&smf_segment_type, "OOOi", connection,
						view, smf_no_event, 0);
	Py_XDECREF(view);
	Py_XDECREF(bytes);
	return segment;
}

/* Take all of a run, as a list of segments. */
static PyObject *take_segments(struct run *run)
{
	PyObject *segments = PyList_New(run->start ? 1 : run->count);

	if (segments && run->start) {	/* the beginning has gone to another protocol */
		PyObject *rest = take_segment(run);

		if (rest)
			PyList_SET_ITEM(segments, 0, rest);
		else
			Py_CLEAR(segments);
	} else if (segments) {
		for (Py_ssize_t i = 0; i < run->count; i++)
			PyList_SET_ITEM(segments, i, Py_NewRef(run->segments[i]));
	}
	run->count = 0;
	return segments;
}

static int hold_back(PyObject *self, struct run *run)
{
	PyObject *segment = take_segment(run);
	PyObject *done = segment ? PyObject_CallMethodOneArg(smf_slot(self, transport.held),
							     name_append, segment) : NULL;

	Py_XDECREF(segment);
	Py_XDECREF(done);
	return done ? 0 : -1;
}

/*
 * A callback of the protocol has raised the current exception: as asyncio does, end the connection,
 * unless the program is to end.
 */
static int callback_failed(PyObject *self, const char *message)
{
	PyObject *error = smf_take_error(), *text, *done;
	PyObject *type, *outer, *traceback;

	if (smf_ends_program(error)) {
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
		Py_DECREF(error);
		return -1;
	}
	/* It is being handled, for what logs it. */
	PyErr_GetExcInfo(&type, &outer, &traceback);
	PyErr_SetExcInfo(Py_NewRef(Py_TYPE(error)), Py_NewRef(error),
			 PyException_GetTraceback(error));
	text = PyUnicode_FromString(message);
	done = text ? PyObject_CallMethodObjArgs(self, name_fatal_error, error, text, NULL) : NULL;
	PyErr_SetExcInfo(type, outer, traceback);
	Py_XDECREF(text);
	Py_XDECREF(done);
	Py_DECREF(error);
	return done ? 0 : -1;
}

/* Call a method of the protocol's with an argument that is made for this call. */
static PyObject *call(PyObject *protocol, PyObject *name, PyObject *argument)
{
	PyObject *result = argument ? PyObject_CallMethodOneArg(protocol, name, argument) : NULL;

	Py_XDECREF(argument);
	return result;
}

/* Fill one buffer of the protocol's.  Returns the bytes in it; -1 if that failed. */
static Py_ssize_t fill_buffer(PyObject *protocol, struct run *run)
{
	PyObject *buffer = PyObject_CallMethodOneArg(protocol, name_get_buffer, minus_one);
	Py_ssize_t filled = -1;
	Py_buffer room;

	if (!buffer || PyObject_GetBuffer(buffer, &room, PyBUF_WRITABLE)) {
		Py_XDECREF(buffer);
		return -1;
	}
	if (room.len)
		filled = take_from(run, room.buf, room.len);
	else
		PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
	PyBuffer_Release(&room);
	Py_DECREF(buffer);
	return filled;
}

static const char *deliver_into_buffer(PyObject *protocol, struct run *run)
{
	Py_ssize_t filled = fill_buffer(protocol, run);
	PyObject *done;

	if (filled < 0)
		return "Fatal error: protocol.get_buffer() call failed.";
	done = call(protocol, name_buffer_updated, PyLong_FromSsize_t(filled));
	Py_XDECREF(done);
	return done ? NULL : "Fatal error: protocol.buffer_updated() call failed.";
}

static const char *deliver_segments(PyObject *protocol, struct run *run)
{
	PyObject *done = call(protocol, name_segments_received, take_segments(run));

	Py_XDECREF(done);
	return done ? NULL : "Fatal error: protocol.segments_received() call failed.";
}

static const char *deliver_bytes(PyObject *protocol, struct run *run)
{
	PyObject *done = call(protocol, name_data_received, take_bytes(run));

	Py_XDECREF(done);
	return done ? NULL : "Fatal error: protocol.data_received() call failed.";
}

/* Deliver a run to the protocol that the transport has, which may be another after each call. */
static int deliver_run(PyObject *self, struct run *run)
{
	while (run->count) {
		PyObject *protocol = smf_slot(self, transport.protocol);
		const char *failed;

		if (smf_slot(self, transport.closing) != Py_False)
			return 0;
		if (smf_slot(self, transport.paused) != Py_False ||
		    PyObject_Size(smf_slot(self, transport.held)))
			return hold_back(self, run);
		Py_INCREF(protocol);
		switch (PyLong_AsLong(smf_slot(self, transport.takes))) {
		case TAKES_BUFFERS:
			failed = deliver_into_buffer(protocol, run);
			break;
		case TAKES_SEGMENTS:
			failed = deliver_segments(protocol, run);
			break;
		default:
			failed = deliver_bytes(protocol, run);
		}
		Py_DECREF(protocol);
		if (failed)
			return callback_failed(self, failed);
	}
	return 0;
}

/* The transport of a segment's connection, borrowed; NULL if it has none. */
static PyObject *transport_of(const struct segment *segment)
{
	PyObject *app;

	if (!PyObject_TypeCheck(segment->connection, connection_type))
		return NULL;
	app = smf_slot(segment->connection, connection_app);
	return app && Py_IS_TYPE(app, transport.type) ? app : NULL;
}

static bool is_event(const struct segment *segment)
{
	return segment->event != smf_no_event && PyObject_IsTrue(segment->event);
}

/* The segments from the first on that have data of one connection. */
static struct run make_run(PyObject *const *segments, Py_ssize_t count)
{
	struct run run = { .segments = segments, .count = 1 };

	while (run.count < count) {
		const struct segment *next = (struct segment *)segments[run.count];

		if (next->connection != first_of(&run)->connection || is_event(next))
			break;
		run.count++;
	}
	return run;
}

static int deliver_in_context(PyObject *self, struct run run)
{
	PyObject *context = Py_NewRef(smf_slot(self, transport.context));
	int status = PyContext_Enter(context);

	if (!status) {
		status = deliver_run(self, &run);
		if (PyContext_Exit(context))
			status = -1;
	}
	Py_DECREF(context);
	return status;
}

/* Deliver from the beginning of a batch.  Returns how many segments are done; *status is 0 or -1. */
static Py_ssize_t deliver_some(PyObject *const *segments, Py_ssize_t count, PyObject *stranger,
			       int *status)
{
	struct segment *first = (struct segment *)segments[0];
	PyObject *self = transport_of(first), *done;
	struct run run;

	if (self && !is_event(first)) {
		run = make_run(segments, count);
		Py_INCREF(self);
		*status = deliver_in_context(self, run);
		Py_DECREF(self);
		return run.count;
	}
	if (self)
		done = PyObject_CallMethodOneArg(self, name_receive_event, (PyObject *)first);
	else
		done = PyObject_CallOneArg(stranger, (PyObject *)first);
	Py_XDECREF(done);
	*status = done ? 0 : -1;
	return 1;
}

bool smf_are_segments(PyObject *const *segments, Py_ssize_t count)
{
	for (Py_ssize_t i = 0; i < count; i++)
		if (!PyObject_TypeCheck(segments[i], &smf_segment_type)) {
			PyErr_Format(PyExc_TypeError, "%R is not a segment", segments[i]);
			return false;
		}
	return true;
}

/* Deliver a batch, which must not change meanwhile.  It is all delivered but if that fails. */
int smf_deliver(PyObject *const *segments, Py_ssize_t count, PyObject *stranger,
		Py_ssize_t *delivered)
{
	int status = smf_are_segments(segments, count) ? 0 : -1;

	*delivered = 0;
	while (!status && *delivered < count)
		*delivered += deliver_some(segments + *delivered, count - *delivered, stranger,
					   &status);
	return status;
}

PyDoc_STRVAR(deliver_doc,
"deliver(segments, stranger)\n"
"\n"
"Give what an exchange has received to the transports, each in its context, and take it from the\n"
"list.  Data goes to the protocols, an event to ``receive_event()`` of the transport, and\n"
"``stranger`` is called with what belongs to none.\n"
"\n"
"SystemExit, KeyboardInterrupt, and what ``receive_event()`` and ``stranger`` raise, pass: the list\n"
"then has what is left.");

static PyObject *deliver(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	PyObject *batch, *type, *exc, *traceback;
	Py_ssize_t done;
	int status;

	(void)module;
	if (nargs != 2 || !transport.type || !PyList_Check(args[0])) {
		PyErr_SetString(PyExc_TypeError, "deliver() takes segments and a function");
		return NULL;
	}
	batch = PyList_AsTuple(args[0]);	/* callbacks cannot change it */
	if (!batch)
		return NULL;
	status = smf_deliver(&PyTuple_GET_ITEM(batch, 0), PyTuple_GET_SIZE(batch), args[1], &done);
	PyErr_Fetch(&type, &exc, &traceback);
	Py_DECREF(batch);
	if (PyList_SetSlice(args[0], 0, done, NULL)) {
		Py_XDECREF(type);
		Py_XDECREF(exc);
		Py_XDECREF(traceback);
		return NULL;
	}
	PyErr_Restore(type, exc, traceback);
	return status ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(deliver_data_doc,
"deliver_data(transport, segments)\n"
"\n"
"Deliver data to the protocol of a transport.  The caller is in the transport's context.  What a\n"
"paused transport does not take is put at the end of ``transport._held``.");

static PyObject *deliver_data(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	struct run run;
	PyObject *batch;
	int status;

	(void)module;
	if (nargs != 2 || !transport.type || !Py_IS_TYPE(args[0], transport.type) ||
	    !PyList_Check(args[1])) {
		PyErr_SetString(PyExc_TypeError, "deliver_data() takes a transport and segments");
		return NULL;
	}
	batch = PyList_AsTuple(args[1]);
	if (!batch)
		return NULL;
	if (!smf_are_segments(&PyTuple_GET_ITEM(batch, 0), PyTuple_GET_SIZE(batch))) {
		Py_DECREF(batch);
		return NULL;
	}
	run = (struct run){ .segments = &PyTuple_GET_ITEM(batch, 0),
			    .count = PyTuple_GET_SIZE(batch) };
	status = deliver_run(args[0], &run);
	Py_DECREF(batch);
	return status ? NULL : Py_NewRef(Py_None);
}

/* -- sending -- */

static bool is_bytes_like(PyObject *data)
{
	return PyBytes_Check(data) || PyByteArray_Check(data) || PyMemoryView_Check(data);
}

/* The next turn of the loop sends what is written. */
static bool loop_runs(PyObject *loop)
{
	PyObject *thread = PyObject_GetAttr(loop, name_thread_id);

	if (!thread)
		PyErr_Clear();
	Py_XDECREF(thread);
	return thread && thread != Py_None;
}

static bool takes_writes(PyObject *self)
{
	return Py_IS_TYPE(self, transport.type) &&
	       smf_slot(self, transport.eof) == Py_False &&
	       smf_slot(self, transport.file_sender) == Py_None &&
	       smf_is_zero(smf_slot(self, transport.conn_lost)) &&
	       loop_runs(smf_slot(self, transport.loop));
}

static PyObject *transport_write(PyObject *method, PyObject *const *args, size_t nargsf,
				 PyObject *names)
{
	PyObject *general = ((struct smf_method *)method)->general;
	PyObject *left;

	if (PyVectorcall_NARGS(nargsf) != 2 || names || !takes_writes(args[0]) ||
	    !is_bytes_like(args[1]))
		return PyObject_Vectorcall(general, args, nargsf, names);
	left = smf_write_as_usual(smf_slot(args[0], transport.connection), args[1]);
	return smf_finish_in_python(general, args[0], left);
}

/* Whether it can be written: a view may be released, or not contiguous. */
static bool is_readable(PyObject *data)
{
	Py_buffer buffer;

	if (!is_bytes_like(data))
		return false;
	if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)) {
		PyErr_Clear();	/* the Python method finds out */
		return false;
	}
	PyBuffer_Release(&buffer);
	return true;
}

static bool are_readable(PyObject *parts)
{
	if (!PyList_CheckExact(parts) && !PyTuple_CheckExact(parts))
		return false;
	for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(parts); i++)
		if (!is_readable(PySequence_Fast_GET_ITEM(parts, i)))
			return false;
	return true;
}

static PyObject *transport_writelines(PyObject *method, PyObject *const *args, size_t nargsf,
				      PyObject *names)
{
	PyObject *general = ((struct smf_method *)method)->general;
	PyObject *left;

	if (PyVectorcall_NARGS(nargsf) != 2 || names || !takes_writes(args[0]) ||
	    !are_readable(args[1]))
		return PyObject_Vectorcall(general, args, nargsf, names);
	left = smf_write_all_as_usual(smf_slot(args[0], transport.connection), args[1]);
	return smf_finish_in_python(general, args[0], left);
}

static int learn_connection(void)
{
	const struct smf_slot slots[] = { { "app", &connection_app }, { 0 } };
	PyObject *module = PyImport_ImportModule("stackmap._connection");
	PyObject *type = module ? PyObject_GetAttrString(module, "Connection") : NULL;

	Py_XDECREF(module);
	if (!type)
		return -1;
	Py_XSETREF(connection_type, (PyTypeObject *)type);
	return smf_find_slots(connection_type, slots);
}

static int learn_transport(PyTypeObject *type)
{
	const struct smf_slot slots[] = {
		{ "_closing", &transport.closing },
		{ "_paused", &transport.paused },
		{ "_held", &transport.held },
		{ "_takes", &transport.takes },
		{ "_protocol", &transport.protocol },
		{ "_context", &transport.context },
		{ "_eof", &transport.eof },
		{ "_file_sender", &transport.file_sender },
		{ "_conn_lost", &transport.conn_lost },
		{ "_connection", &transport.connection },
		{ "_loop", &transport.loop },
		{ 0 }
	};

	if (learn_connection() || smf_find_slots(type, slots))
		return -1;
	Py_XSETREF(transport.type, (PyTypeObject *)Py_NewRef(type));
	return 0;
}

PyDoc_STRVAR(usual_transport_write_doc,
"usual_transport_write(write)\n"
"\n"
"Decorate PortTransport.write(): C writes to a connection on a ring of which nothing waits.");

static PyObject *usual_transport_write(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, transport_write, learn_transport);
}

PyDoc_STRVAR(usual_transport_writelines_doc,
"usual_transport_writelines(writelines)\n"
"\n"
"Decorate PortTransport.writelines(): C writes where usual_transport_write() has C write.");

static PyObject *usual_transport_writelines(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, transport_writelines, smf_learn_nothing);
}

static PyMethodDef functions[] = {
	{ "deliver", (PyCFunction)(void (*)(void))deliver, METH_FASTCALL, deliver_doc },
	{ "deliver_data", (PyCFunction)(void (*)(void))deliver_data, METH_FASTCALL,
	  deliver_data_doc },
	{ "usual_transport_write", usual_transport_write, METH_O, usual_transport_write_doc },
	{ "usual_transport_writelines", usual_transport_writelines, METH_O,
	  usual_transport_writelines_doc },
	{ 0 }
};

int smf_init_transport(PyObject *module)
{
	const struct smf_name names[] = {
		{ "data_received", &name_data_received },
		{ "get_buffer", &name_get_buffer },
		{ "buffer_updated", &name_buffer_updated },
		{ "segments_received", &name_segments_received },
		{ "append", &name_append },
		{ "receive_event", &name_receive_event },
		{ "_fatal_error", &name_fatal_error },
		{ "_thread_id", &name_thread_id },
		{ 0 }
	};

	minus_one = PyLong_FromLong(-1);
	if (!minus_one || smf_intern_names(names))
		return -1;
	return PyModule_AddFunctions(module, functions);
}
