CREATE TABLE public.current_runbooks (
    name text NOT NULL,
    version text NOT NULL
);
CREATE TABLE public.drengine_version (
    version integer NOT NULL
);
CREATE SEQUENCE public.drengine_version_version_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.drengine_version_version_seq OWNED BY public.drengine_version.version;
CREATE TABLE public.holds (
    source text NOT NULL,
    run text NOT NULL
);
CREATE TABLE public.journal (
    run text NOT NULL,
    seq integer NOT NULL,
    step text NOT NULL,
    event text NOT NULL,
    attempt integer NOT NULL,
    at_ns bigint NOT NULL,
    payload text NOT NULL
);
CREATE TABLE public.leases (
    name text NOT NULL,
    owner text NOT NULL,
    token bigint NOT NULL,
    granted_ns bigint NOT NULL,
    expires_ns bigint NOT NULL
);
CREATE TABLE public.parties (
    kind text NOT NULL,
    name text NOT NULL,
    report text NOT NULL,
    reported_ns bigint NOT NULL,
    online boolean NOT NULL,
    since_ns bigint NOT NULL,
    instance text NOT NULL,
    sequence bigint NOT NULL,
    release text NOT NULL
);
CREATE TABLE public.requests (
    run text NOT NULL,
    seq integer NOT NULL,
    kind text NOT NULL,
    step text NOT NULL,
    by text NOT NULL,
    note text NOT NULL,
    at_ns bigint NOT NULL,
    proof text DEFAULT ''::text NOT NULL,
    roles text DEFAULT ''::text NOT NULL,
    digest text DEFAULT ''::text NOT NULL
);
CREATE TABLE public.runbooks (
    name text NOT NULL,
    version text NOT NULL,
    text text NOT NULL,
    at_ns bigint NOT NULL
);
CREATE TABLE public.runs (
    id text NOT NULL,
    mode text NOT NULL,
    runbook text NOT NULL,
    version text NOT NULL,
    sources text NOT NULL,
    started_by text NOT NULL,
    created_ns bigint NOT NULL,
    options text NOT NULL,
    state text NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL,
    finished_ns bigint NOT NULL,
    started_proof text DEFAULT ''::text NOT NULL
);
CREATE TABLE public.schedules (
    name text NOT NULL,
    due_ns bigint NOT NULL
);
ALTER TABLE ONLY public.drengine_version ALTER COLUMN version SET DEFAULT nextval('public.drengine_version_version_seq'::regclass);
INSERT INTO public.current_runbooks VALUES ('shop', 'v2');
INSERT INTO public.drengine_version VALUES (2);
INSERT INTO public.holds VALUES ('shop', 'r2');
INSERT INTO public.holds VALUES ('db', 'r2');
INSERT INTO public.journal VALUES ('r1', 1, '', 'decision', 1, 10, '{"n":1,"text":"\u0000"}');
INSERT INTO public.journal VALUES ('r1', 2, 's2', 'intent', 2, 20, '{"n":2,"text":"\u0000"}');
INSERT INTO public.journal VALUES ('r1', 3, 's3', 'intent', 3, 30, '{"n":3,"text":"\u0000"}');
INSERT INTO public.journal VALUES ('r1', 4, 's4', 'intent', 4, 40, '{"n":4,"text":"\u0000"}');
INSERT INTO public.journal VALUES ('r1', 5, 's5', 'intent', 5, 50, '{"n":5,"text":"\u0000"}');
INSERT INTO public.journal VALUES ('r2', 1, '', 'decision', 0, 31, '{"decision":"planned"}');
INSERT INTO public.leases VALUES ('run:r1', '', 3, 1, 0);
INSERT INTO public.leases VALUES ('run:r2', 'host:1:ab', 1, 5, 9);
INSERT INTO public.parties VALUES ('agent', 'shop', '{"name":"shop"}', 5, true, 4, 'i', 7, '1.0');
INSERT INTO public.parties VALUES ('host', 'rescue', '', 0, false, 0, '', -1, '');
INSERT INTO public.requests VALUES ('r1', 1, 'approve', 's2', 'cy', 'looks fine', 15, 'login:cy', 'approver', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd');
INSERT INTO public.requests VALUES ('r2', 1, 'abort', '', 'ann', '', 33, '', '', '');
INSERT INTO public.runbooks VALUES ('shop', 'v1', 'version: 1 # ü ☃ ''quoted''
', 1);
INSERT INTO public.runbooks VALUES ('shop', 'v2', 'version: 1
name: shop
', 2);
INSERT INTO public.runs VALUES ('r1', 'drill', 'shop', 'v1', '["shop"]', 'ann', 10, '{"point":"latest"}', 'finished', 'completed', 'all-done', 20, 'login:ann');
INSERT INTO public.runs VALUES ('r2', 'failover', 'shop', 'v2', '["shop","db"]', 'ben', 30, '{}', 'waiting', '', 'approval-needed', 0, 'uid:0');
INSERT INTO public.schedules VALUES ('shop', 77);
ALTER TABLE ONLY public.current_runbooks
    ADD CONSTRAINT current_runbooks_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.drengine_version
    ADD CONSTRAINT drengine_version_pkey PRIMARY KEY (version);
ALTER TABLE ONLY public.holds
    ADD CONSTRAINT holds_pkey PRIMARY KEY (source);
ALTER TABLE ONLY public.journal
    ADD CONSTRAINT journal_pkey PRIMARY KEY (run, seq);
ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.parties
    ADD CONSTRAINT parties_pkey PRIMARY KEY (kind, name);
ALTER TABLE ONLY public.requests
    ADD CONSTRAINT requests_pkey PRIMARY KEY (run, seq);
ALTER TABLE ONLY public.runbooks
    ADD CONSTRAINT runbooks_pkey PRIMARY KEY (name, version);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (name);
CREATE INDEX ix_holds_run ON public.holds USING btree (run);
CREATE INDEX runs_by_runbook ON public.runs USING btree (runbook, created_ns);
CREATE INDEX runs_by_time ON public.runs USING btree (created_ns);
ALTER TABLE ONLY public.holds
    ADD CONSTRAINT holds_run_fkey FOREIGN KEY (run) REFERENCES public.runs(id);
ALTER TABLE ONLY public.journal
    ADD CONSTRAINT journal_run_fkey FOREIGN KEY (run) REFERENCES public.runs(id);
ALTER TABLE ONLY public.requests
    ADD CONSTRAINT requests_run_fkey FOREIGN KEY (run) REFERENCES public.runs(id);
