// SPDX-License-Identifier: GPL-2.0
/*
 * Turns of stackmap.aio's event loop in which there is nothing to do but to deliver what connections
 * have received.
 *
 * They are made within the select() that would wait for it, one after the other: a turn of asyncio's
 * is Python, and costs several times as much as receiving, delivering and sending a message.
 */
#include "_fast.h"

/* stackmap.aio's PortSelector, and where its instances have what is looked at here. */
static struct {
	PyTypeObject *type;
	Py_ssize_t exchange, ready, loop, pending, segments, turn_begins, turns, waiting;
} selector;

static PyObject *name_stopping, *name_debug, *name_scheduled, *name_when, *name_time;
static PyObject *name_stranger, *name_delivery_failed;
static PyObject *zero, *one;

/* Exchange; returns what was received. */
static PyObject *take_turn(PyObject *self, PyObject *wait)
{
	PyObject *received, *turns, *turn_begins, *done;

	smf_set_slot(self, selector.waiting, Py_NewRef(Py_True));
	received = PyObject_CallOneArg(smf_slot(self, selector.exchange), wait);
	if (!received)
		return NULL;
	smf_set_slot(self, selector.waiting, Py_NewRef(Py_False));
	turns = PyNumber_Add(smf_slot(self, selector.turns), one);
	if (!turns)
		goto failed;
	smf_set_slot(self, selector.turns, turns);
	turn_begins = smf_slot(self, selector.turn_begins);
	if (turn_begins != Py_None) {
		Py_INCREF(turn_begins);
		done = PyObject_CallNoArgs(turn_begins);
		Py_DECREF(turn_begins);
		if (!done)
			goto failed;
		Py_DECREF(done);
	}
	return received;
failed:
	Py_DECREF(received);
	return NULL;
}

/* Whether an attribute of the loop is true; -1 with an exception. */
static int is_true(PyObject *loop, PyObject *name)
{
	PyObject *value = PyObject_GetAttr(loop, name);
	int truth = value ? PyObject_IsTrue(value) : -1;

	Py_XDECREF(value);
	return truth;
}

/* How long to wait for the first timer: None for ever, zero if it is due. */
static PyObject *until_timer(PyObject *loop)
{
	PyObject *scheduled = PyObject_GetAttr(loop, name_scheduled);
	PyObject *when = NULL, *now = NULL, *left = NULL;

	if (!scheduled || !PyList_Check(scheduled) || !PyList_GET_SIZE(scheduled)) {
		Py_XDECREF(scheduled);
		return scheduled ? Py_NewRef(Py_None) : NULL;
	}
	when = PyObject_GetAttr(PyList_GET_ITEM(scheduled, 0), name_when);
	now = when ? PyObject_CallMethodNoArgs(loop, name_time) : NULL;
	left = now ? PyNumber_Subtract(when, now) : NULL;
	if (left && PyFloat_Check(left) && PyFloat_AS_DOUBLE(left) <= 0)
		Py_SETREF(left, Py_NewRef(zero));
	Py_XDECREF(now);
	Py_XDECREF(when);
	Py_DECREF(scheduled);
	return left;
}

/*
 * How long the next turn may wait, which is zero if the loop has something else to do; NULL with an
 * exception.
 */
static PyObject *next_wait(PyObject *self)
{
	PyObject *loop = smf_slot(self, selector.loop);
	int stopping;

	if (PyObject_Size(smf_slot(self, selector.pending)))
		return Py_NewRef(zero);
	stopping = is_true(loop, name_stopping);
	if (stopping)
		return stopping < 0 ? NULL : Py_NewRef(zero);
	return until_timer(loop);
}

/* Deliver all of a batch; what is left, because that failed, is for the loop to deliver. */
static int deliver(PyObject *self, PyObject *received)
{
	PyObject *loop = smf_slot(self, selector.loop);
	PyObject *stranger = PyObject_GetAttr(loop, name_stranger);
	PyObject *segments = smf_slot(self, selector.segments), *error, *done;
	Py_ssize_t delivered;

	if (!stranger)
		return -1;
	/* Nobody else has the list. */
	if (!smf_deliver(((PyListObject *)received)->ob_item, PyList_GET_SIZE(received), stranger,
			 &delivered)) {
		Py_DECREF(stranger);
		return 0;
	}
	Py_DECREF(stranger);
	error = smf_take_error();
	if (PyList_SetSlice(received, 0, delivered, NULL) ||
	    PyList_SetSlice(segments, 0, 0, received)) {
		Py_DECREF(error);	/* out of memory: that is what is raised */
		return -1;
	}
	done = smf_report(loop, name_delivery_failed, error);
	Py_XDECREF(done);
	return done ? 0 : -1;
}

/* Leave what was received to the loop; returns the files that are ready. */
static PyObject *leave(PyObject *self, PyObject *received)
{
	PyObject *segments = smf_slot(self, selector.segments);
	PyObject *ready = Py_NewRef(smf_slot(self, selector.ready)), *none;
	Py_ssize_t size = PyList_GET_SIZE(segments);

	if (received && PyList_SetSlice(segments, size, size, received))
		Py_CLEAR(ready);
	if (ready && PyList_GET_SIZE(ready)) {
		none = PyList_New(0);
		if (!none) {
			Py_DECREF(ready);
			return NULL;
		}
		smf_set_slot(self, selector.ready, none);
	}
	return ready;
}

static PyObject *make_turns(PyObject *self, PyObject *wait)
{
	PyObject *received, *found;
	int debug, status;
	bool waits;

	for (Py_INCREF(wait);; ) {
		waits = wait == Py_None || PyFloat_AsDouble(wait) > 0;
		received = PyErr_Occurred() ? NULL : take_turn(self, waits ? wait : zero);
		Py_DECREF(wait);
		if (!received)
			return NULL;
		debug = is_true(smf_slot(self, selector.loop), name_debug);
		if (debug || !waits || !PyList_CheckExact(received) || !PyList_GET_SIZE(received) ||
		    PyList_GET_SIZE(smf_slot(self, selector.ready)))
			break;
		status = deliver(self, received);
		Py_DECREF(received);
		if (status)
			return NULL;
		wait = next_wait(self);
		if (!wait)
			return NULL;
		if (wait == zero || PyList_GET_SIZE(smf_slot(self, selector.segments))) {
			Py_DECREF(wait);
			return leave(self, NULL);
		}
	}
	found = debug < 0 ? NULL : leave(self, received);
	Py_DECREF(received);
	return found;
}

static PyObject *selector_select(PyObject *method, PyObject *const *args, size_t nargsf,
				 PyObject *names)
{
	if (PyVectorcall_NARGS(nargsf) != 2 || names || !Py_IS_TYPE(args[0], selector.type) ||
	    smf_slot(args[0], selector.loop) == Py_None ||
	    PyList_GET_SIZE(smf_slot(args[0], selector.segments)))
		return PyObject_Vectorcall(((struct smf_method *)method)->general, args, nargsf,
					   names);
	return make_turns(args[0], args[1]);
}

static int learn_selector(PyTypeObject *type)
{
	const struct smf_slot slots[] = {
		{ "_exchange", &selector.exchange },
		{ "_ready", &selector.ready },
		{ "loop", &selector.loop },
		{ "pending", &selector.pending },
		{ "segments", &selector.segments },
		{ "turn_begins", &selector.turn_begins },
		{ "turns", &selector.turns },
		{ "waiting", &selector.waiting },
		{ 0 }
	};

	if (smf_find_slots(type, slots))
		return -1;
	Py_XSETREF(selector.type, (PyTypeObject *)Py_NewRef(type));
	return 0;
}

PyDoc_STRVAR(usual_select_doc,
"usual_select(select)\n"
"\n"
"Decorate PortSelector.select(): C makes turns, until the loop has something else to do.");

static PyObject *usual_select(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, selector_select, learn_selector);
}

static PyMethodDef functions[] = {
	{ "usual_select", usual_select, METH_O, usual_select_doc },
	{ 0 }
};

int smf_init_turn(PyObject *module)
{
	const struct smf_name names[] = {
		{ "_stopping", &name_stopping },
		{ "_debug", &name_debug },
		{ "_scheduled", &name_scheduled },
		{ "_when", &name_when },
		{ "time", &name_time },
		{ "_complain_of_stranger", &name_stranger },
		{ "_delivery_failed", &name_delivery_failed },
		{ 0 }
	};

	zero = PyFloat_FromDouble(0);
	one = PyLong_FromLong(1);
	if (!zero || !one || smf_intern_names(names))
		return -1;
	return PyModule_AddFunctions(module, functions);
}
